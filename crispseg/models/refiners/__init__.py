"""Refiners in PyTorch."""
