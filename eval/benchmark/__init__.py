"""The benchmark: any methods on any references, drawn with the same seeds and compared by metrics with versions."""
