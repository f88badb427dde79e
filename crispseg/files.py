"""Questions about places on disk that are asked before long work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Union

from crispseg.errors import InputError


def require_writable(path: Union[str, Path], option: str) -> None:
    """Raise InputError unless a file or folder could be made at ``path``; leaves no trace.

    ``option``: what the message calls it, such as "output". Permissions are tried, not read: a read-only disk and
    special file systems deny what the mode bits promise.
    """
    path = Path(os.path.abspath(str(path)))
    try:
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
