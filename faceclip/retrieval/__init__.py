"""Retrieval of portraits as it is asked and judged, the same in validation and evaluation."""
