"""Files, hashes, locks and shards: writes are atomic, and reads are verified."""
