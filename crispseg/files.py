"""SHA-256 of files and frames, the name a file has while it is written, and whether one could be written at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Optional, Tuple, Union

from crispseg.errors import InputError

_LONGEST_NAME = 255  # bytes, on every common file system


def partial_path(path: Path) -> Path:
    """Where a file is written before it gets its name: NAME.partial beside it, a shorter one where that is too long."""
    name = path.name + ".partial"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(path.name)).hexdigest() + ".partial"
    return path.with_name(name)


def hash_stream(stream: BinaryIO) -> str:
    """SHA-256 (hex) of the rest of a stream, read in blocks."""
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def hash_file(path: Union[str, Path]) -> str:
    """SHA-256 (hex) of a file. Raises OSError."""
    with open(str(path), "rb") as stream:
        return hash_stream(stream)


def hash_files(paths: Iterable[Union[str, Path]]) -> str:
    """SHA-256 (hex) of the names (without folders) and contents of files in this order. Raises OSError."""
    return hash_listed((hash_file(path), Path(path).name) for path in paths)


def hash_read(paths: Iterable[Union[str, Path]]) -> Optional[str]:
    """:func:`hash_files` for a report of what was made of them; None when one is gone meanwhile: the report counts."""
    try:
        return hash_files(paths)
    except OSError:
        return None


def hash_listed(entries: Iterable[Tuple[str, str]]) -> str:
    """:func:`hash_files` of files whose contents are hashed already: (SHA-256, name) of each."""
    digest = hashlib.sha256()
    for content, name in entries:
        digest.update(("%s  %s\n" % (content, name)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def hash_frames(frames: Iterable[Any]) -> str:
    """SHA-256 (hex) of numpy frames uint8 [H,W,3] in this order: of each "HxW" and a line feed, then its pixels."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(b"%dx%d\n" % frame.shape[:2])
        digest.update(frame.data if frame.flags.c_contiguous else frame.tobytes())
    return digest.hexdigest()


def require_writable(path: Union[str, Path], option: str) -> None:
    """Raise InputError unless a file or folder could be made at ``path``; leaves no trace.

    ``option``: what the message calls it, such as "output". A pipe or device there is refused: who reads what an
    earlier run left would wait for ever, and a finished file would take its place. Permissions are tried, not read: a
    read-only disk and special file systems deny what the mode bits promise.
    """
    path = Path(os.path.abspath(str(path)))
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(
                "%s %s: expected a file or a new name, found a pipe or device; choose another name" % (option, path)
            )
        folder = next(parent for parent in path.parents if os.path.lexists(str(parent)))
        with tempfile.TemporaryFile(dir=str(folder)):
            pass
    except NotADirectoryError:
        raise InputError(
            "%s %s: expected %s to be a folder, found a file; choose another place" % (option, path, folder)
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError("%s %s: cannot be written: %s; choose another place" % (option, path, reason)) from None
