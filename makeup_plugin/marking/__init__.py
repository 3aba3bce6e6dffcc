"""Provenance metadata and the invisible watermark of generated pictures."""
