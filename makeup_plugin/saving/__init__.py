"""Pipelines, adapters and published checkpoints on disk."""
