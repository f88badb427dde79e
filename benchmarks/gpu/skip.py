"""A section that cannot run here says why with ``Skip``."""

from __future__ import annotations


class Skip(Exception):  # noqa: N818
    """The reason."""
