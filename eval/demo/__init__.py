"""The demo: both stages trained from the shipped towers, pictures, evaluation, and one report."""
