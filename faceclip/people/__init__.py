"""Synthetic identities: labelled portraits rendered from the parametric head; no photograph is involved."""
