"""Fixtures of the op tests."""

from cuda_case import gpu  # noqa: F401
