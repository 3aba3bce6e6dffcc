"""Files, hashes, locks and shards: what is written is whole, and what is read is verified."""
