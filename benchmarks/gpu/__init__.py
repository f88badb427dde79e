"""Checks and benchmarks on a GPU: ``make gpu`` (run.py)."""
