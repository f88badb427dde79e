"""What a bundle says about its int8 networks: where each calibration came from, and which graph it belongs to.

Field ``calibration`` of bundle.json, absent in a bundle that was never calibrated (docs/calibration.md). The fp32 files
stay in the bundle; ``--precision int8`` selects the files that stand here.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

from crispseg.bundle_fields import Fields
from crispseg.errors import BundleError

if TYPE_CHECKING:
    from crispseg.bundle_schema import Bundle

ROLES = ("base", "baseline", "refiner")
METHODS = ("minmax", "entropy", "percentile", "mse")
METADATA = "crispseg.calibration"  # key in the int8 ONNX file: JSON of sources, method, images and preprocessing
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")


@dataclass(frozen=True)
class NetCalibration:
    """One int8 network.

    ``file``: the int8 ONNX. ``sources``: file of the bundle -> SHA-256, of what it was made from. ``images_sha256``: of
    the ordered list of images (names and contents). ``preprocessing_sha256``: of everything that brings a frame to the
    network. ``synthetic``: random data instead of images. ``excluded``: nodes that stay float although their operator
    could be int8. ``macs_share``: multiply-adds in int8 / all, 0..1. ``options``: plain JSON of the other choices.
    """

    file: str
    sources: Mapping[str, str]
    method: str
    images_sha256: str
    image_count: int
    preprocessing_sha256: str
    seed: int
    synthetic: bool
    excluded: Tuple[str, ...]
    macs_share: float
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """The calibrated networks of a bundle, by role; ``gate``: what they cost when they were made; ``date``: UTC."""

    networks: Mapping[str, NetCalibration]
    gate: Optional[Mapping[str, Any]] = None
    date: str = "1970-01-01T00:00:00Z"


def parse_calibration(data: Any, where: str) -> Calibration:
    """Check parsed JSON. Raises BundleError that names the field."""
    top = Fields(data, where, "calibration", [item.name for item in dataclasses.fields(Calibration)])
    networks = top.raw("networks")
    if not isinstance(networks, dict) or not networks or not set(networks) <= set(ROLES):
        raise BundleError("%s: calibration.networks: expected any of %s" % (where, ", ".join(ROLES)))
    gate = top.raw("gate")
    if gate is not None and not isinstance(gate, dict):
        raise BundleError("%s: calibration.gate: expected an object or null" % where)
    date = top.text("date")
    if not _DATE.match(date):
        raise BundleError("%s: calibration.date: expected 2026-01-31T12:00:00Z, found %s" % (where, date[:40]))
    return Calibration({role: _network(networks[role], where, role) for role in sorted(networks)}, gate, date)


def _network(data: Any, where: str, role: str) -> NetCalibration:
    from crispseg.bundle_schema import plain_name

    key = "calibration.networks.%s" % role
    f = Fields(data, where, key, [item.name for item in dataclasses.fields(NetCalibration)])
    sources = f.raw("sources")
    if not isinstance(sources, dict) or not sources or len(sources) > 64:
        raise BundleError("%s: %s.sources: expected an object of file names and hashes" % (where, key))
    for name, digest in sources.items():
        _hash(digest, "%s: %s.sources[%s]" % (where, key, plain_name(name, key + ".sources", where)))
    excluded = f.items("excluded", 0, 100000)
    if not all(isinstance(name, str) and len(name) <= 500 for name in excluded):
        raise BundleError("%s: %s.excluded: expected names of nodes" % (where, key))
    options, versions = f.raw("options"), f.raw("versions")
    if not isinstance(options, dict) or not isinstance(versions, dict):
        raise BundleError("%s: %s: expected objects under options and versions" % (where, key))
    return NetCalibration(
        file=plain_name(f.text("file"), key + ".file", where),
        sources=dict(sources),
        method=f.choice("method", METHODS),
        images_sha256=_hash(f.raw("images_sha256"), "%s: %s.images_sha256" % (where, key)),
        image_count=f.integer("image_count", 1, 1 << 31),
        preprocessing_sha256=_hash(f.raw("preprocessing_sha256"), "%s: %s.preprocessing_sha256" % (where, key)),
        seed=f.integer("seed", -(1 << 63), 1 << 63),
        synthetic=f.boolean("synthetic"),
        excluded=tuple(excluded),
        macs_share=f.numbers("macs_share", 1, 1, 0.0, 1.0, scalar=True)[0],
        options=options,
        versions=versions,
    )


def _hash(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _HASH.match(value):
        raise BundleError("%s: expected 64 lower-case hex digits, found %s" % (where, repr(value)[:40]))
    return value


def to_plain(calibration: Calibration) -> Dict[str, Any]:
    """The content of the field ``calibration``."""
    networks = {}
    for role, net in sorted(calibration.networks.items()):
        entry = dataclasses.asdict(net)
        entry["sources"] = dict(sorted(net.sources.items()))
        entry["excluded"] = list(net.excluded)
        networks[role] = entry
    return {"networks": networks, "gate": calibration.gate, "date": calibration.date}


def calibrated(bundle: Bundle, role: str) -> bool:
    """Whether the bundle has an int8 file of this network."""
    return bundle.calibration is not None and role in bundle.calibration.networks


def runs_at(bundle: Bundle, role: str, precision: str) -> str:
    """The precision of a network in a pipeline at ``precision``.

    "fp32" instead of int8 when only its partner (base and refiner are one pipeline) was calibrated; reports say so.
    """
    partner = {"base": "refiner", "refiner": "base"}.get(role)
    if precision == "int8" and partner and calibrated(bundle, partner) and not calibrated(bundle, role):
        return "fp32"
    return precision


def network_file(bundle: Bundle, role: str, precision: str) -> str:
    """Name of the file of a network ("base", "baseline", "refiner") at a precision.

    fp32 and fp16 start from the fp32 file. int8 needs a calibration; where base or refiner alone was calibrated, the
    other keeps its float file (:func:`runs_at`).

    Raises:
        BundleError: int8, and the bundle was not calibrated, or its calibration belongs to another graph.
    """
    net = getattr(bundle, role)
    if runs_at(bundle, role, precision) != "int8":
        return str(net.file)
    if not calibrated(bundle, role):
        networks = "" if role == "base" else " --networks %s" % ",".join(("base", role))
        raise BundleError(
            "bundle %s: precision int8: expected a calibration of the %s, found none; run `crispseg calibrate %s "
            "IMAGES%s -o NEW`, or use --precision fp32" % (bundle.path, role, bundle.path, networks)
        )
    assert bundle.calibration is not None
    entry = bundle.calibration.networks[role]
    if entry.file in entry.sources:
        raise _foreign(bundle, role, "an int8 file made from %s" % net.file, "that file itself")
    for name, digest in entry.sources.items():
        found = bundle.files[name].sha256 if name in bundle.files else "no such file"
        if found != digest:
            raise _foreign(bundle, role, "%s with SHA-256 %s..." % (name, digest[:12]), found[:12])
    if net.file not in entry.sources:
        raise _foreign(bundle, role, ", ".join(sorted(entry.sources)), str(net.file))
    if preprocessing_hash(bundle, role) != entry.preprocessing_sha256:
        raise _foreign(bundle, role, "the preprocessing that it was calibrated with", "another")
    return entry.file


def _foreign(bundle: Bundle, role: str, expected: str, found: str) -> BundleError:
    return BundleError(
        "bundle %s: the int8 %s belongs to another graph: expected %s, found %s; run `crispseg calibrate %s IMAGES "
        "-o NEW`" % (bundle.path, role, expected, found, bundle.path)
    )


def preprocessing_hash(bundle: Bundle, role: str) -> str:
    """SHA-256 of what brings a frame to a network: sizes, resize rule, channel order, statistics."""
    import hashlib
    import json

    net = bundle.baseline if role == "baseline" and bundle.baseline else bundle.base
    facts = {
        "frame": [bundle.height, bundle.width],
        "input": [net.height, net.width],
        "resize": net.resize,
        "channel_order": net.channel_order,
        "mean": list(net.mean),
        "std": list(net.std),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii")).hexdigest()


def check_listed(calibration: Calibration, files: Mapping[str, Any], where: str) -> None:
    """Raise BundleError unless every int8 file stands under ``files``."""
    for role, net in calibration.networks.items():
        if net.file not in files:
            raise BundleError("%s: %s (calibration of the %s) is not listed under files" % (where, net.file, role))


def facts(bundle: Bundle, precision: str) -> Optional[Dict[str, Any]]:
    """What every report of an int8 run says about the calibration; None at other precisions."""
    if precision != "int8" or bundle.calibration is None:
        return None
    plain = to_plain(bundle.calibration)
    for entry in plain["networks"].values():
        entry["excluded"] = len(entry["excluded"])
    return plain


def macs_percent(bundle: Bundle) -> Dict[str, float]:
    """Multiply-adds in int8 / all, percent, of each calibrated network of the pipeline."""
    found = bundle.calibration.networks if bundle.calibration else {}
    return {role: round(100 * found[role].macs_share, 2) for role in ("base", "refiner") if role in found}


def warnings(bundle: Bundle, precision: str) -> Tuple[str, ...]:
    """What a reader of a report on int8 must know."""
    if precision != "int8" or bundle.calibration is None:
        return ()
    found = [
        "the %s was calibrated on random data (--synthetic): its accuracy says nothing" % role
        for role, net in sorted(bundle.calibration.networks.items())
        if net.synthetic
    ]
    found += [
        "the %s has no calibration: it runs in float" % role
        for role in ("base", "refiner")
        if getattr(bundle, role) is not None and runs_at(bundle, role, "int8") != "int8"
    ]
    return tuple(found)


def source_names(path: Path) -> Tuple[str, ...]:
    """Names of the files beside an ONNX file that hold its weights (external data), sorted."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    names = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    return tuple(sorted(names))
