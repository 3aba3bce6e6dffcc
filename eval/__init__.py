"""Evaluation: retrieval, generation, leakage, and the reports that show them."""
