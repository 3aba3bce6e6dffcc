"""Captions of portraits: one grammar for renders and photographs, the attributes that it reads on photographs, and the
regions that given words mention."""
