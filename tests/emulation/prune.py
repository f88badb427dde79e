"""Entries of the build cache that nobody has used for days are removed: every edit of a kernel leaves some behind."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

DAYS = 3.0


def used(entry: Path) -> Path:
    """Notes that an object or a library is in use; returns it."""
    os.utime(entry)
    return entry


def prune(folder: Path, days: float = DAYS) -> int:
    """Removes objects, libraries and remains of builds that were last used so many days ago; returns their number.

    The caller holds the cache's lock. Libraries that a process has loaded stay loaded.
    """
    oldest, removed = time.time() - 86400 * days, 0
    for entry in folder.iterdir():
        if entry.name == "lock" or entry.is_symlink():
            continue
        times = [path.stat().st_mtime for path in (entry, *(entry.iterdir() if entry.is_dir() else ()))]
        if max(times) < oldest:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            removed += 1
    return removed
