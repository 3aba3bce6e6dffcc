"""Retrieval of test portraits by face, text, face and text together, and image."""
