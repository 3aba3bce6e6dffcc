"""The towers: face, text and image encoders, and how they are loaded."""
