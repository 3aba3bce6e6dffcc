"""Stage 2 on photographs as they lie in tables, tars, folders and hub data sets: read once, kept as shards.

config: what is cut from a photo. build: the pass over the rows. portraits: what training reads.
"""
