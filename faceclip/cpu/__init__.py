"""Faster products and attention on CPUs."""
