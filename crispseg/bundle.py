"""The bundle: a directory with ``bundle.json`` and the network files that it names.

Everything read from disk is checked before it is used; :func:`load_bundle` raises BundleError and nothing else.
The fields are described in docs/bundle.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from crispseg.bundle_fields import Fields, parse_json
from crispseg.classes import IGNORE_LABEL, ClassInfo, check_classes
from crispseg.errors import BundleError, InputError

SCHEMA = 1
MANIFEST = "bundle.json"
CONTRACT = 1
MAX_SIDE = 16384
MAX_PIXELS = 1 << 27
MAX_FILE_BYTES = 1 << 34
MAX_MANIFEST_BYTES = 1 << 20
UPSAMPLE = ("nearest", "bilinear", "bilinear_corners")
CHANNEL_ORDER = ("rgb", "bgr")
RESIZE = ("antialias",)
EXTENT = ("active", "image")
ENSEMBLER = ("gated", "entropy")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_FEATURE = re.compile(r"(rgb|xy|p|p>[0-9]*\.?[0-9]+)\Z")


@dataclass(frozen=True)
class NetInfo:
    """A dense network of a bundle.

    ``height``, ``width``: size of its input. ``mean``, ``std``: in 0..255 units, applied to *output* channel c, which
    is image channel c ("rgb") or 2-c ("bgr"). ``logits_height``, ``logits_width``: size of its output. ``upsample``:
    the rule that takes logits to the frame's size. ``random_weights``: an untrained network for speed studies.
    """

    file: str
    architecture: str
    height: int
    width: int
    channel_order: str
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]
    resize: str
    logits_height: int
    logits_width: int
    upsample: str
    random_weights: bool = False


@dataclass(frozen=True)
class RefinerInfo:
    """The refiner of a bundle; ``planes`` and ``repeats`` have one entry for each U-Net level, finest first."""

    file: str
    kind: str
    contract: int
    planes: Tuple[int, ...]
    repeats: Tuple[int, ...]
    features: Tuple[str, ...]
    extent: str
    ensembler: str
    upsample: str
    threshold: float
    capacity: int
    random_weights: bool = False


@dataclass(frozen=True)
class FileInfo:
    """SHA-256 (lower-case hex) and size of a file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Bundle:
    """A validated bundle. ``height``, ``width``: size of the label map; ``path``: its directory."""

    path: Path
    name: str
    height: int
    width: int
    classes: Tuple[ClassInfo, ...]
    ignore_label: int
    base: NetInfo
    baseline: Optional[NetInfo]
    refiner: Optional[RefinerInfo]
    files: Mapping[str, FileInfo]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """Path of one file of the bundle."""
        return self.path / name


def load_bundle(path: Union[str, Path], verify: bool = True) -> Bundle:
    """Read and check the bundle in directory ``path``; raise BundleError that names what is wrong.

    ``verify=False`` skips the SHA-256 of the files (their presence and sizes are checked all the same).
    """
    root = Path(path)
    try:
        if not root.is_dir():
            found = "a file" if root.exists() else "nothing"
            raise BundleError("bundle %s: expected a directory with %s, found %s; give the directory that `crispseg "
                              "export` wrote" % (root, MANIFEST, found))
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
    bundle = _parse(parse_json(raw, str(root / MANIFEST)), root)
    for name, info in bundle.files.items():
        _check_file(root, name, info, verify)
    return bundle


def bundle_hash(bundle: Bundle) -> str:
    """SHA-256 (hex) of the canonical manifest, which holds the SHA-256 of every file; the location does not matter."""
    text = json.dumps(_manifest(bundle), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


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
    files: Mapping[str, Union[bytes, Path]],
) -> Bundle:
    """Write a bundle to directory ``target`` and return it as loaded again.

    ``files``: name -> content or a file to copy. The bundle is built in ``target + ".partial"``, checked there and
    then renamed, so an error leaves ``target`` as it was. An existing bundle is replaced; any other existing file or
    non-empty directory is refused. Raises InputError (place, disk) or BundleError (inconsistent content).
    """
    target = Path(target)
    if os.path.lexists(str(target)):
        empty = target.is_dir() and not any(target.iterdir())
        if target.is_symlink() or not (empty or (target.is_dir() and (target / MANIFEST).is_file())):
            raise InputError("output %s: expected a new directory or an existing bundle, found something else; choose "
                             "another name or remove it" % target)
    for item in files:
        _plain_name(item, "files", "write_bundle")
    partial = target.with_name(target.name + ".partial")
    try:
        _remove(partial)
        partial.mkdir(parents=True)
        listed = {item: _store(partial / item, content) for item, content in sorted(files.items())}
        bundle = Bundle(partial, name, height, width, tuple(classes), IGNORE_LABEL, base, baseline, refiner, listed,
                        dict(provenance or {}))
        try:
            text = json.dumps(_manifest(bundle), indent=1, ensure_ascii=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BundleError("bundle %s: provenance is not plain JSON: %s" % (target, error)) from None
        _store(partial / MANIFEST, text.encode("ascii") + b"\n")
        load_bundle(partial, verify=False)
        _replace_directory(partial, target)
    except OSError as error:
        raise InputError("output %s: cannot be written: %s; free space or choose another place"
                         % (target, _reason(error))) from None
    finally:
        shutil.rmtree(str(partial), ignore_errors=True)
    return load_bundle(target)


# ---- reading -----------------------------------------------------------------------------------------------------


def _parse(data: Any, root: Path) -> Bundle:
    where = str(root / MANIFEST)
    if isinstance(data, dict) and data.get("schema") != SCHEMA:
        found = data.get("schema")
        raise BundleError("%s: expected schema %d, found %s; export the bundle again with this version of crispseg, or "
                          "install the version that wrote it" % (where, SCHEMA, repr(found)[:40]))
    top = Fields(data, where, "", ("schema", "name", "height", "width", "classes", "ignore_label", "base", "baseline",
                                   "refiner", "files", "provenance"))
    name = top.text("name")
    height, width = top.integer("height", 1, MAX_SIDE), top.integer("width", 1, MAX_SIDE)
    if height * width > MAX_PIXELS:
        raise BundleError("%s: expected at most %d pixels, found %d x %d" % (where, MAX_PIXELS, height, width))
    if top.integer("ignore_label", 0, 255) != IGNORE_LABEL:
        raise BundleError("%s: ignore_label: expected %d, found %d" % (where, IGNORE_LABEL, data["ignore_label"]))
    classes = []
    for i, item in enumerate(top.items("classes", 2, 255)):
        entry = Fields(item, where, "classes[%d]" % i, ("name", "color"))
        color = tuple(int(v) for v in entry.numbers("color", 3, 3, 0, 255, whole=True))
        classes.append(ClassInfo(entry.text("name"), (color[0], color[1], color[2])))
    try:
        table = check_classes(classes, "%s: classes" % where)
    except InputError as error:
        raise BundleError(str(error)) from None
    base = _net(top.raw("base"), where, "base")
    baseline = None if top.raw("baseline") is None else _net(top.raw("baseline"), where, "baseline")
    refiner = None if top.raw("refiner") is None else _refiner(top.raw("refiner"), where, height * width)
    files = _files(top.raw("files"), where)
    for net in (base, baseline, refiner):
        if net is not None and net.file not in files:
            raise BundleError("%s: %s is used but not listed under files" % (where, net.file))
    provenance = top.raw("provenance")
    if not isinstance(provenance, dict):
        raise BundleError("%s: provenance: expected an object, found %s" % (where, type(provenance).__name__))
    return Bundle(root, name, height, width, table, IGNORE_LABEL, base, baseline, refiner, files, provenance)


def _net(data: Any, where: str, key: str) -> NetInfo:
    f = Fields(data, where, key, [item.name for item in dataclasses.fields(NetInfo)])
    mean, std = f.numbers("mean", 3, 3, -1000.0, 1000.0), f.numbers("std", 3, 3, 1e-3, 1000.0)
    net = NetInfo(
        file=_plain_name(f.text("file"), key + ".file", where), architecture=f.text("architecture"),
        height=f.integer("height", 1, MAX_SIDE), width=f.integer("width", 1, MAX_SIDE),
        channel_order=f.choice("channel_order", CHANNEL_ORDER),
        mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]), resize=f.choice("resize", RESIZE),
        logits_height=f.integer("logits_height", 1, MAX_SIDE), logits_width=f.integer("logits_width", 1, MAX_SIDE),
        upsample=f.choice("upsample", UPSAMPLE), random_weights=f.boolean("random_weights"))
    if net.height * net.width > MAX_PIXELS or net.logits_height * net.logits_width > MAX_PIXELS:
        raise BundleError("%s: %s: expected at most %d pixels" % (where, key, MAX_PIXELS))
    return net


def _refiner(data: Any, where: str, pixels: int) -> RefinerInfo:
    f = Fields(data, where, "refiner", [item.name for item in dataclasses.fields(RefinerInfo)])
    planes = tuple(int(v) for v in f.numbers("planes", 1, 12, 1, 8192, whole=True))
    repeats = tuple(int(v) for v in f.numbers("repeats", len(planes), len(planes), 0, 64, whole=True))
    features = tuple(f.items("features", 1, 8))
    for item in features:
        if not isinstance(item, str) or not _FEATURE.match(item):
            raise BundleError('%s: refiner.features: expected "rgb", "xy", "p" or "p>number", found %s'
                              % (where, repr(item)[:40]))
    contract = f.integer("contract", 0, 1 << 30)
    if contract != CONTRACT:
        raise BundleError("%s: refiner.contract: expected op contract %d, found %d; export the bundle again with this "
                          "version of crispseg" % (where, CONTRACT, contract))
    return RefinerInfo(
        file=_plain_name(f.text("file"), "refiner.file", where), kind=f.choice("kind", ("sparserefine",)),
        contract=contract, planes=planes, repeats=repeats, features=features, extent=f.choice("extent", EXTENT),
        ensembler=f.choice("ensembler", ENSEMBLER), upsample=f.choice("upsample", UPSAMPLE),
        threshold=f.numbers("threshold", 1, 1, -1e6, 1e6, scalar=True)[0], capacity=f.integer("capacity", 1, pixels),
        random_weights=f.boolean("random_weights"))


def _files(data: Any, where: str) -> Dict[str, FileInfo]:
    if not isinstance(data, dict) or not 1 <= len(data) <= 64:
        raise BundleError("%s: files: expected an object with 1 to 64 files, found %s" % (where, repr(data)[:40]))
    out = {}
    for name, item in data.items():
        _plain_name(name, "files", where)
        f = Fields(item, where, "files[%s]" % name, ("sha256", "bytes"))
        sha = f.text("sha256")
        if not re.match(r"[0-9a-f]{64}\Z", sha):
            raise BundleError("%s: files[%s].sha256: expected 64 lower-case hex digits, found %r" % (where, name, sha))
        out[name] = FileInfo(sha, f.integer("bytes", 0, MAX_FILE_BYTES))
    return out


def _plain_name(name: Any, key: str, where: str) -> str:
    if not isinstance(name, str) or not _NAME.match(name) or name == MANIFEST or name.endswith("."):
        raise BundleError("%s: %s: expected a plain file name (letters, digits, . _ -) inside the bundle, found %s"
                          % (where, key, repr(name)[:80]))
    return name


def _regular(path: Path, root: Path, name: str) -> os.stat_result:
    info = os.lstat(str(path))
    if stat.S_ISLNK(info.st_mode):
        raise BundleError("bundle %s: %s: expected a regular file, found a symbolic link; copy the file in" % (root, name))
    if not stat.S_ISREG(info.st_mode):
        raise BundleError("bundle %s: %s: expected a regular file, found something else" % (root, name))
    return info


def _check_file(root: Path, name: str, expected: FileInfo, verify: bool) -> None:
    path = root / name
    try:
        found = _regular(path, root, name)
        if found.st_size != expected.bytes:
            what = "truncated" if found.st_size < expected.bytes else "altered"
            raise BundleError("bundle %s: %s: expected %d bytes, found %d (%s); copy or export the bundle again"
                              % (root, name, expected.bytes, found.st_size, what))
        if verify:
            digest = _hash(path)
            if digest != expected.sha256:
                raise BundleError("bundle %s: %s: expected SHA-256 %s..., found %s... (altered); copy or export the "
                                  "bundle again" % (root, name, expected.sha256[:12], digest[:12]))
    except FileNotFoundError:
        raise BundleError("bundle %s: expected file %s, found none; copy or export the bundle again"
                          % (root, name)) from None
    except OSError as error:
        raise BundleError("bundle %s: %s: cannot be read: %s" % (root, name, _reason(error))) from None


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(str(path), "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# ---- writing -----------------------------------------------------------------------------------------------------


def _manifest(bundle: Bundle) -> Dict[str, Any]:
    return {
        "schema": SCHEMA, "name": bundle.name, "height": bundle.height, "width": bundle.width,
        "classes": [{"name": item.name, "color": list(item.color)} for item in bundle.classes],
        "ignore_label": bundle.ignore_label,
        "base": dataclasses.asdict(bundle.base),
        "baseline": None if bundle.baseline is None else dataclasses.asdict(bundle.baseline),
        "refiner": None if bundle.refiner is None else dataclasses.asdict(bundle.refiner),
        "files": {name: dataclasses.asdict(info) for name, info in sorted(bundle.files.items())},
        "provenance": bundle.provenance,
    }


def _store(path: Path, content: Union[bytes, Path]) -> FileInfo:
    with open(str(path), "wb") as stream:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            with open(str(content), "rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())
    return FileInfo(_hash(path), path.stat().st_size)


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
