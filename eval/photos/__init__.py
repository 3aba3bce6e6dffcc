"""Measurements on a user's own photographs, which lie in one folder per person."""
