"""Evaluation: retrieval, generation, leakage, and the reports that show them."""

from faceclip.cpu.waiting import choose_waiting

choose_waiting()
