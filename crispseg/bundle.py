"""The bundle: a directory with ``bundle.json`` and the network files that it names.

Everything read from disk is checked before it is used; :func:`load_bundle` raises BundleError and nothing else.
The fields are described in docs/bundle.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from crispseg.bundle_calibration import Calibration
from crispseg.bundle_fields import parse_json
from crispseg.bundle_schema import (
    CONTRACT,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SCHEMA,
    Bundle,
    FileInfo,
    NetInfo,
    RefinerInfo,
    parse_manifest,
    plain_name,
    to_manifest,
)
from crispseg.classes import IGNORE_LABEL, ClassInfo
from crispseg.errors import BundleError, InputError
from crispseg.files import hash_file, require_writable

__all__ = [
    "CONTRACT",
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "FileInfo",
    "NetInfo",
    "RefinerInfo",
    "bundle_facts",
    "bundle_hash",
    "check_target",
    "describe_files",
    "load_bundle",
    "write_bundle",
]


def load_bundle(path: Union[str, Path], verify: bool = True) -> Bundle:
    """Read and check the bundle in directory ``path``; raise BundleError that names what is wrong.

    ``verify=False`` skips the SHA-256 of the files (their presence and sizes are checked all the same).
    """
    root, data = read_manifest(path)
    bundle = parse_manifest(data, root)
    check_files(root, bundle.files, verify)
    return bundle


def read_manifest(path: Union[str, Path]) -> Tuple[Path, Any]:
    """The directory and the parsed, unchecked JSON of its manifest. Raises BundleError."""
    root = Path(path)
    try:
        if not root.is_dir():
            found = "a file" if root.exists() else "nothing"
            raise BundleError(
                "bundle %s: expected a directory with %s, found %s; give the directory that `crispseg "
                "export` wrote" % (root, MANIFEST, found)
            )
        manifest = root / MANIFEST
        if not os.path.lexists(str(manifest)):
            raise BundleError("bundle %s: expected %s in it, found none; export the bundle again" % (root, MANIFEST))
        _regular(manifest, root, MANIFEST)
        with open(str(manifest), "rb") as stream:
            raw = stream.read(MAX_MANIFEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BundleError("bundle %s: cannot be read: %s" % (root, _reason(error))) from None
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError("%s: expected at most %d bytes, found more" % (root / MANIFEST, MAX_MANIFEST_BYTES))
    return root, parse_json(raw, str(root / MANIFEST))


def check_files(root: Path, files: Mapping[str, FileInfo], verify: bool) -> None:
    """Raise BundleError unless every file is there with its size and, with ``verify``, its SHA-256."""
    for name, info in files.items():
        _check_file(root, name, info, verify)


def bundle_hash(bundle: Bundle) -> str:
    """SHA-256 (hex) of the canonical manifest, which holds the SHA-256 of every file; the location does not matter."""
    return manifest_hash(to_manifest(bundle))


def bundle_facts(bundle: Bundle) -> Dict[str, Any]:
    """What every report says of the bundle that it is about."""
    return {"name": bundle.name, "path": str(bundle.path), "sha256": bundle_hash(bundle)}


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a manifest in canonical form."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_target(target: Union[str, Path]) -> None:
    """Raise InputError unless :func:`write_bundle` may write to ``target``: nothing there, empty, or a bundle."""
    target = Path(target)
    try:
        bundle = target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))
        free = not os.path.lexists(str(target)) or (bundle and not target.is_symlink())
    except (OSError, ValueError) as error:
        raise InputError("output %s: cannot be used: %s; choose another place" % (target, _reason(error))) from None
    if not free:
        raise InputError(
            "output %s: expected a new directory or an existing bundle, found something else; choose "
            "another name or remove it" % target
        )
    require_writable(target, "output")


def write_bundle(
    target: Union[str, Path],
    *,
    name: str,
    height: int,
    width: int,
    classes: Sequence[ClassInfo],
    base: NetInfo,
    baseline: Optional[NetInfo] = None,
    refiner: Optional[RefinerInfo] = None,
    provenance: Optional[Mapping[str, Any]] = None,
    calibration: Optional[Calibration] = None,
    files: Mapping[str, Union[bytes, Path]],
) -> Bundle:
    """Write a bundle to directory ``target`` and return it as loaded again.

    ``files``: name -> content or a file to copy. The bundle is built in ``target + ".partial"``, checked there and
    then renamed, so an error leaves ``target`` as it was. An existing bundle is replaced; any other existing file or
    non-empty directory is refused. Raises InputError (place, disk) or BundleError (inconsistent content).
    """
    where = Path(target)

    def manifest(partial: Path, listed: Dict[str, FileInfo]) -> Dict[str, Any]:
        bundle = Bundle(
            partial,
            name,
            height,
            width,
            tuple(classes),
            IGNORE_LABEL,
            base,
            baseline,
            refiner,
            listed,
            dict(provenance or {}),
            calibration,
        )
        return to_manifest(bundle)

    write_directory(where, files, manifest, lambda partial: load_bundle(partial, verify=False))
    return load_bundle(where)


def write_directory(
    target: Path,
    files: Mapping[str, Union[bytes, Path]],
    manifest: Callable[[Path, Dict[str, FileInfo]], Dict[str, Any]],
    check: Callable[[Path], Any],
) -> None:
    """Write a bundle's directory, all or nothing.

    ``manifest(directory, files)`` gives the content of bundle.json once the files lie in the temporary directory;
    ``check(directory)`` raises unless it can be loaded. Raises InputError or BundleError.
    """
    check_target(target)
    for item in files:
        plain_name(item, "files", "write_bundle")
    partial = target.with_name(target.name + ".partial")
    try:
        _remove(partial)
        partial.mkdir(parents=True)
        listed = {item: _store(partial / item, content) for item, content in sorted(files.items())}
        try:
            text = json.dumps(manifest(partial, listed), indent=1, ensure_ascii=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BundleError("bundle %s: provenance is not plain JSON: %s" % (target, error)) from None
        _store(partial / MANIFEST, text.encode("ascii") + b"\n")
        check(partial)
        _replace_directory(partial, target)
    except OSError as error:
        raise InputError(
            "output %s: cannot be written: %s; free space or choose another place" % (target, _reason(error))
        ) from None
    finally:
        shutil.rmtree(str(partial), ignore_errors=True)


def _regular(path: Path, root: Path, name: str) -> os.stat_result:
    info = os.lstat(str(path))
    if stat.S_ISLNK(info.st_mode):
        raise BundleError(
            "bundle %s: %s: expected a regular file, found a symbolic link; copy the file in" % (root, name)
        )
    if not stat.S_ISREG(info.st_mode):
        raise BundleError(
            "bundle %s: %s: expected a regular file, found a folder, pipe or device; copy or export the "
            "bundle again" % (root, name)
        )
    return info


def _check_file(root: Path, name: str, expected: FileInfo, verify: bool) -> None:
    path = root / name
    try:
        found = _regular(path, root, name)
        if found.st_size != expected.bytes:
            what = "truncated" if found.st_size < expected.bytes else "altered"
            raise BundleError(
                "bundle %s: %s: expected %d bytes, found %d (%s); copy or export the bundle again"
                % (root, name, expected.bytes, found.st_size, what)
            )
        if verify:
            digest = hash_file(path)
            if digest != expected.sha256:
                raise BundleError(
                    "bundle %s: %s: expected SHA-256 %s..., found %s... (altered); copy or export the "
                    "bundle again" % (root, name, expected.sha256[:12], digest[:12])
                )
    except FileNotFoundError:
        raise BundleError(
            "bundle %s: expected file %s, found none; copy or export the bundle again" % (root, name)
        ) from None
    except OSError as error:
        raise BundleError("bundle %s: %s: cannot be read: %s" % (root, name, _reason(error))) from None


def _store(path: Path, content: Union[bytes, Path]) -> FileInfo:
    with open(str(path), "wb") as stream:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            with open(str(content), "rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())
    return FileInfo(hash_file(path), path.stat().st_size)


def _replace_directory(partial: Path, target: Path) -> None:
    if not os.path.lexists(str(target)):
        os.rename(str(partial), str(target))
        return
    # A directory with content cannot be replaced in one call: step the old one aside, and back if the rename fails.
    old = target.with_name(target.name + ".old")
    _remove(old)
    os.rename(str(target), str(old))
    try:
        os.rename(str(partial), str(target))
    except OSError:
        os.rename(str(old), str(target))
        raise
    shutil.rmtree(str(old), ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(str(path))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def describe_files(bundle: Bundle) -> List[Tuple[str, int]]:
    """Names and sizes (bytes) of the files of the bundle, largest first."""
    return sorted(((name, info.bytes) for name, info in bundle.files.items()), key=lambda item: -item[1])
