"""Curation: every picture of a data set is measured once, and thresholds on these figures decide what is kept.

`measures` defines what a measure is. `pixels`, `face_measures` and `text` hold the measures that ship. `shards` runs
them over a source, `rules` and `duplicates` decide, `output` writes the kept data set, and `report` shows the reasons.
"""
