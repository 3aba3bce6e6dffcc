"""Evaluation: retrieval, generation, leakage, and the reports that show them."""

from faceclip.cpu.waiting import let_threads_sleep

let_threads_sleep()
