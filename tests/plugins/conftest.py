"""Fixtures of the op tests."""

from cuda_case import gpu  # noqa: F401
from emulation_bench import bench  # noqa: F401
