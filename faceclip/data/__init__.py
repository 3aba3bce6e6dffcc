"""Data: records, captions, decoded arrays and synthetic identities."""
