"""Draws test identities by several arms of a generator, and judges them by networks that did not train it."""
