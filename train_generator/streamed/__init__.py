"""Stage 2 on photographs in tables, tars, folders and hub data sets, which are read once and kept as shards.

`config` says what is cut from a photo, `build` makes the pass over the rows, and `portraits` is what training reads.
"""
