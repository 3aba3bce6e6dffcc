"""The steps of a call of the pipeline, one module each; `generate` puts them in order."""
