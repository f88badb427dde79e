"""Engines of a bundle that is written anew in place: those that still belong to its files stay."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

from crispseg.bundle import Bundle
from crispseg.engines import cache
from crispseg.errors import BundleError, InputError

ASIDE = ".engines.partial"  # end of the name under which they wait beside the bundle


def rewrite(target: Path, write: Callable[[], Bundle]) -> Tuple[Bundle, int, List[str]]:
    """Write a bundle and keep what was compiled of it.

    An engine stays when all files that it was made from are the same in the new bundle; so do timing caches.

    Args:
        target: the bundle's directory, which need not be there.
        write: replaces it, or raises and leaves it as it was.

    Returns:
        The bundle as written, how many engines stayed, and what was removed: a text each, with the command that makes
        it again.

    Raises:
        InputError: the engines cannot be moved. Whatever ``write`` raises; the engines are then in their place again.
    """
    with _aside(target) as aside:
        bundle = write()
        if aside is None:
            return bundle, 0, []
        kept, removed = 0, []
        for path in sorted(aside.iterdir()):
            gone = _outdated(path, bundle)
            if gone is None:
                kept += path.is_dir()
            else:
                removed += [gone] if gone else []
                shutil.rmtree(str(path), ignore_errors=True)
        return bundle, kept, removed


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Optional[Path]]:
    """The engines folder of a bundle, moved beside it for a while; None when there is none.

    What a run left there that was killed meanwhile is taken up again, unless newer ones were built since.
    """
    folder, aside = target / cache.FOLDER, target.with_name(target.name + ASIDE)
    left = target.is_dir() and aside.is_dir() and not os.path.lexists(str(folder))
    if not left and (folder.is_symlink() or not folder.is_dir()):
        yield None
        return
    if not left:
        try:
            if aside.exists():
                shutil.rmtree(str(aside))
            os.rename(str(folder), str(aside))
        except OSError as error:
            raise _unmovable(folder, error) from None
    try:
        yield aside
    finally:
        try:
            os.rename(str(aside), str(folder))
        except OSError as error:
            raise _unmovable(aside, error) from None


def _unmovable(path: Path, error: Any) -> InputError:
    return InputError("%s: cannot be moved: %s; move or delete it" % (path, error.strerror or error))


def _outdated(path: Path, bundle: Bundle) -> Optional[str]:
    """None: an entry of the folder that stays. Else what goes, "" when there is nothing to say about it."""
    if not path.is_dir():
        return None
    try:
        identity = cache.load(path).identity
    except BundleError:
        return ""  # damaged, or half written
    files = {name: info.sha256 for name, info in bundle.files.items()}
    if all(files.get(name) == sha for name, sha in identity.sources.items()):
        return None
    precision = identity.spec.get("precision")
    what = "%s engine of the %s%s" % (identity.backend, identity.role, ", %s" % precision if precision else "")
    command = cache.rebuild_command(bundle.path, identity)
    return "%s: removed, as it was made from other files; run `%s`" % (what, command)
