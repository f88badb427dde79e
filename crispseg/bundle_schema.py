"""What a bundle's manifest holds: the records, their checks, and the way back to plain JSON."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from crispseg.bundle_calibration import Calibration, check_listed, parse_calibration, to_plain
from crispseg.bundle_fields import Fields
from crispseg.classes import IGNORE_LABEL, ClassInfo, check_classes
from crispseg.errors import BundleError, InputError

SCHEMA = 1
MANIFEST = "bundle.json"
MASK_REFINER = "mask-refiner"  # `kind` of the bundles of bundle_masks.py
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
    calibration: Optional[Calibration] = None

    def file(self, name: str) -> Path:
        """Path of one file of the bundle."""
        return self.path / name


def parse_manifest(data: Any, root: Path) -> Bundle:
    """Check parsed JSON and return the bundle it describes (files on disk unchecked). Raises BundleError."""
    where = str(root / MANIFEST)
    check_schema(data, where)
    if isinstance(data, dict) and data.get("kind") == MASK_REFINER:
        raise BundleError(
            "%s: expected a bundle that segments frames, found a mask refiner; use `crispseg refine`" % where
        )
    top = Fields(
        data,
        where,
        "",
        (
            "schema",
            "name",
            "height",
            "width",
            "classes",
            "ignore_label",
            "base",
            "baseline",
            "refiner",
            "files",
            "provenance",
            *(("calibration",) if isinstance(data, dict) and "calibration" in data else ()),
        ),
    )
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
    files = parse_files(top.raw("files"), where)
    for net in (base, baseline, refiner):
        if net is not None and net.file not in files:
            raise BundleError("%s: %s is used but not listed under files" % (where, net.file))
    provenance = top.raw("provenance")
    if not isinstance(provenance, dict):
        raise BundleError("%s: provenance: expected an object, found %s" % (where, type(provenance).__name__))
    calibration = parse_calibration(data["calibration"], where) if "calibration" in data else None
    if calibration is not None:
        check_listed(calibration, files, where)
    return Bundle(
        root, name, height, width, table, IGNORE_LABEL, base, baseline, refiner, files, provenance, calibration
    )


def check_schema(data: Any, where: str) -> None:
    """Raise BundleError when a manifest is of another schema version."""
    if isinstance(data, dict) and data.get("schema") != SCHEMA:
        found = data.get("schema")
        raise BundleError(
            "%s: expected schema %d, found %s; export the bundle again with this version of crispseg, or "
            "install the version that wrote it" % (where, SCHEMA, repr(found)[:40])
        )


def _net(data: Any, where: str, key: str) -> NetInfo:
    f = Fields(data, where, key, [item.name for item in dataclasses.fields(NetInfo)])
    mean, std = f.numbers("mean", 3, 3, -1000.0, 1000.0), f.numbers("std", 3, 3, 1e-3, 1000.0)
    net = NetInfo(
        file=plain_name(f.text("file"), key + ".file", where),
        architecture=f.text("architecture"),
        height=f.integer("height", 1, MAX_SIDE),
        width=f.integer("width", 1, MAX_SIDE),
        channel_order=f.choice("channel_order", CHANNEL_ORDER),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resize=f.choice("resize", RESIZE),
        logits_height=f.integer("logits_height", 1, MAX_SIDE),
        logits_width=f.integer("logits_width", 1, MAX_SIDE),
        upsample=f.choice("upsample", UPSAMPLE),
        random_weights=f.boolean("random_weights"),
    )
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
            raise BundleError(
                '%s: refiner.features: expected "rgb", "xy", "p" or "p>number", found %s' % (where, repr(item)[:40])
            )
    contract = f.integer("contract", 0, 1 << 30)
    if contract != CONTRACT:
        raise BundleError(
            "%s: refiner.contract: expected op contract %d, found %d; export the bundle again with this "
            "version of crispseg" % (where, CONTRACT, contract)
        )
    return RefinerInfo(
        file=plain_name(f.text("file"), "refiner.file", where),
        kind=f.choice("kind", ("sparserefine",)),
        contract=contract,
        planes=planes,
        repeats=repeats,
        features=features,
        extent=f.choice("extent", EXTENT),
        ensembler=f.choice("ensembler", ENSEMBLER),
        upsample=f.choice("upsample", UPSAMPLE),
        threshold=f.numbers("threshold", 1, 1, -1e6, 1e6, scalar=True)[0],
        capacity=f.integer("capacity", 1, pixels),
        random_weights=f.boolean("random_weights"),
    )


def parse_files(data: Any, where: str) -> Dict[str, FileInfo]:
    """The checked ``files`` of a manifest (files on disk unchecked). Raises BundleError."""
    if not isinstance(data, dict) or not 1 <= len(data) <= 64:
        raise BundleError("%s: files: expected an object with 1 to 64 files, found %s" % (where, repr(data)[:40]))
    out = {}
    for name, item in data.items():
        plain_name(name, "files", where)
        f = Fields(item, where, "files[%s]" % name, ("sha256", "bytes"))
        sha = f.text("sha256")
        if not re.match(r"[0-9a-f]{64}\Z", sha):
            raise BundleError("%s: files[%s].sha256: expected 64 lower-case hex digits, found %r" % (where, name, sha))
        out[name] = FileInfo(sha, f.integer("bytes", 0, MAX_FILE_BYTES))
    return out


def plain_name(name: Any, key: str, where: str) -> str:
    """Return ``name`` when it is a plain file name, else raise BundleError."""
    if not isinstance(name, str) or not _NAME.match(name) or name == MANIFEST or name.endswith("."):
        raise BundleError(
            "%s: %s: expected a plain file name (letters, digits, . _ -) inside the bundle, found %s"
            % (where, key, repr(name)[:80])
        )
    return name


def to_manifest(bundle: Bundle) -> Dict[str, Any]:
    """The content of bundle.json."""
    return {
        "schema": SCHEMA,
        "name": bundle.name,
        "height": bundle.height,
        "width": bundle.width,
        "classes": [{"name": item.name, "color": list(item.color)} for item in bundle.classes],
        "ignore_label": bundle.ignore_label,
        "base": dataclasses.asdict(bundle.base),
        "baseline": None if bundle.baseline is None else dataclasses.asdict(bundle.baseline),
        "refiner": None if bundle.refiner is None else dataclasses.asdict(bundle.refiner),
        "files": {name: dataclasses.asdict(info) for name, info in sorted(bundle.files.items())},
        "provenance": bundle.provenance,
        **({} if bundle.calibration is None else {"calibration": to_plain(bundle.calibration)}),
    }
