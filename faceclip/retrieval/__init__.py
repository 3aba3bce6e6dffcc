"""Queries of portrait retrieval and their right answers, shared by validation and evaluation."""
