"""Metrics by name and version: their cores on injected features, the feature models, and a description of each."""
