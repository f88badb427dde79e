"""The timing cache: what TensorRT measured in earlier builds, shared by builds that run at the same time.

The file is read before a build and merged into after it, both under a lock, so nobody's measurements are lost; it is
replaced in one step, so a reader never sees half of it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Iterator, Tuple

from crispseg.errors import InputError

MAX_BYTES = 1 << 30


def attach(config: Any, path: Path) -> Tuple[Any, bool]:
    """Give a builder configuration the measurements of ``path``.

    Returns:
        (cache, used): the cache, to be kept until :func:`save`; False when there is no file, or it is of another
        TensorRT or GPU (the build then starts from nothing).

    Raises:
        InputError: the place cannot be read or written.
    """
    data = b""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if path.exists():
                if path.stat().st_size > MAX_BYTES or not path.is_file():
                    raise InputError("--timing-cache %s: expected a file of at most 1 GiB; name another" % path)
                data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError("--timing-cache %s: cannot be used: %s; name another" % (path, reason)) from None
    cache = config.create_timing_cache(data)
    used = bool(data) and cache is not None and config.set_timing_cache(cache, False)
    if not used:
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache, bool(used)


def save(config: Any, cache: Any, path: Path) -> int:
    """Merge the measurements of a build into ``path``; returns the size of the file in bytes.

    Args:
        config: of the build.
        cache: of :func:`attach`. Not config.get_timing_cache(): in the bindings of all versions that call hands out the
            configuration's own cache as if the caller owned it (pybind11's default policy in pyCore.cpp).
        path: the file.

    Raises:
        InputError: the file cannot be written.
    """
    partial = path.with_name("%s.%d.partial" % (path.name, os.getpid()))
    try:
        with _locked(path):
            if path.is_file() and 0 < path.stat().st_size <= MAX_BYTES:
                others = config.create_timing_cache(path.read_bytes())
                if others is not None:
                    cache.combine(others, False)  # False: measurements of another GPU or version stay out
            data = bytes(memoryview(cache.serialize()))
            try:
                with open(str(partial), "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(str(partial), str(path))
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise InputError("--timing-cache %s: cannot be written: %s; name another" % (path, reason)) from None
    return len(data)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An exclusive lock beside ``path``; it goes with the process, whatever happens to it."""
    try:
        import fcntl
    except ImportError:  # not a Unix: os.replace alone keeps the file whole
        yield
        return
    with open(str(path) + ".lock", "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)
