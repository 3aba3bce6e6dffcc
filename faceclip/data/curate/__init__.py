"""Curation: figures of every picture of a data set, written once; thresholds on them, applied afterwards; what is kept.

`measures` says what a measure is, `pixels`, `face_measures` and `text` hold those that ship, `shards` runs them over a
source, `rules` and `duplicates` decide, `output` writes the data set that is kept, `report` shows why.
"""
