"""Mask-refiner bundles: a network that sharpens one mask of a picture. No base, no classes; any picture size.

``bundle.json`` carries ``kind: "mask-refiner"`` and one of two networks, told apart by ``refiner.kind``. Reading is as
strict as for other bundles: :func:`load_mask_bundle` raises BundleError and nothing else. docs/mask-refiners.md
describes the fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Union

from crispseg.bundle import check_files, manifest_hash, read_manifest, write_directory
from crispseg.bundle_fields import Fields
from crispseg.bundle_schema import MANIFEST, MASK_REFINER, SCHEMA, FileInfo, check_schema, parse_files, plain_name
from crispseg.errors import BundleError

MODES = ("instance", "semantic")
KINDS = ("segrefiner", "crm")


@dataclass(frozen=True)
class SegRefinerInfo:
    """SegRefiner's U-Net: ``image`` float32 [N,4,size,size] and ``t`` int64 [N] -> ``logits`` [N,1,size,size].

    ``mode``: what the checkpoint was trained for, "instance" (LR) or "semantic" (HR). ``size``: side of the input, px.
    ``fine_left``: chance that a pixel is still fine at step t (the paper's cumulative product); its last step is the
    noisiest. ``mean``, ``std``: RGB, 0..255. ``pad``: border around an object, px. ``min_area``: smaller objects stay
    as they are, px. ``batch``: most objects or windows in one call. ``fine_threshold``, ``iou_threshold``: choice of
    the windows in semantic mode.
    """

    file: str
    mode: str
    size: int
    fine_left: Tuple[float, ...]
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]
    pad: int = 20
    min_area: int = 512
    batch: int = 32
    fine_threshold: float = 0.9
    iou_threshold: float = 0.3
    random_weights: bool = False

    @property
    def networks(self) -> Tuple[str, ...]:
        """Its files."""
        return (self.file,)


@dataclass(frozen=True)
class CrmInfo:
    """CRM: backbone, fusion of its maps to a projected feature map, and a decoder that answers queries.

    ``backbone``, ``fusion``, ``decoder``: files. ``block``: (rows, columns) of queries in one decoder call.
    ``scales``: of the picture, in the order they run. ``border``: reflected on each side, px. ``mean``, ``std``: RGB,
    0..255.
    """

    backbone: str
    fusion: str
    decoder: str
    block: Tuple[int, int]
    scales: Tuple[float, ...]
    border: int
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]
    random_weights: bool = False

    @property
    def networks(self) -> Tuple[str, ...]:
        """Its files."""
        return (self.backbone, self.fusion, self.decoder)


MaskRefinerInfo = Union[SegRefinerInfo, CrmInfo]


@dataclass(frozen=True)
class MaskBundle:
    """A validated mask-refiner bundle; ``path``: its directory."""

    path: Path
    name: str
    refiner: MaskRefinerInfo
    files: Mapping[str, FileInfo]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        return kind_of(self.refiner)

    def file(self, name: str) -> Path:
        """Path of one file of the bundle."""
        return self.path / name


def kind_of(info: MaskRefinerInfo) -> str:
    """One of ``KINDS``."""
    return "segrefiner" if isinstance(info, SegRefinerInfo) else "crm"


def load_mask_bundle(path: Union[str, Path], verify: bool = True) -> MaskBundle:
    """Read and check the bundle in directory ``path``; raise BundleError that names what is wrong.

    ``verify=False`` skips the SHA-256 of the files (their presence and sizes are checked all the same).
    """
    root, data = read_manifest(path)
    bundle = parse_mask_manifest(data, root)
    check_files(root, bundle.files, verify)
    return bundle


def is_mask_bundle(path: Union[str, Path]) -> bool:
    """Whether the manifest in ``path`` says so; its content is unchecked. False when it cannot be read."""
    try:
        data = read_manifest(path)[1]
    except BundleError:
        return False
    return isinstance(data, dict) and data.get("kind") == MASK_REFINER


def parse_mask_manifest(data: Any, root: Path) -> MaskBundle:
    """Check parsed JSON and return the bundle it describes (files on disk unchecked). Raises BundleError."""
    where = str(root / MANIFEST)
    check_schema(data, where)
    if isinstance(data, dict) and "kind" not in data:
        raise BundleError(
            "%s: expected a mask refiner, found a bundle that segments frames; use `crispseg run`" % where
        )
    top = Fields(data, where, "", ("schema", "kind", "name", "refiner", "files", "provenance"))
    top.choice("kind", (MASK_REFINER,))
    raw = top.raw("refiner")
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind not in KINDS:
        raise BundleError("%s: refiner.kind: expected %s, found %s" % (where, " or ".join(KINDS), repr(kind)[:40]))
    refiner: MaskRefinerInfo = _segrefiner(raw, where) if kind == "segrefiner" else _crm(raw, where)
    files = parse_files(top.raw("files"), where)
    for name in refiner.networks:
        if name not in files:
            raise BundleError("%s: %s is used but not listed under files" % (where, name))
    provenance = top.raw("provenance")
    if not isinstance(provenance, dict):
        raise BundleError("%s: provenance: expected an object, found %s" % (where, type(provenance).__name__))
    return MaskBundle(root, top.text("name"), refiner, files, provenance)


def _fields(data: Any, where: str, record: Any) -> Fields:
    return Fields(data, where, "refiner", ["kind"] + [item.name for item in dataclasses.fields(record)])


def _colours(f: Fields) -> Dict[str, Tuple[float, float, float]]:
    mean, std = f.numbers("mean", 3, 3, -1000.0, 1000.0), f.numbers("std", 3, 3, 1e-3, 1000.0)
    return {"mean": (mean[0], mean[1], mean[2]), "std": (std[0], std[1], std[2])}


def _segrefiner(data: Any, where: str) -> SegRefinerInfo:
    f = _fields(data, where, SegRefinerInfo)
    size = f.integer("size", 32, 4096)
    if size % 32:
        raise BundleError("%s: refiner.size: expected a multiple of 32, found %d" % (where, size))
    left = tuple(f.numbers("fine_left", 2, 1000, 0.0, 0.999))
    if left[-1] != 0 or any(b >= a for a, b in zip(left, left[1:])):
        raise BundleError("%s: refiner.fine_left: expected numbers that fall to 0, found others" % where)
    return SegRefinerInfo(
        file=plain_name(f.text("file"), "refiner.file", where),
        mode=f.choice("mode", MODES),
        size=size,
        fine_left=left,
        pad=f.integer("pad", 0, 4096),
        min_area=f.integer("min_area", 0, 1 << 30),
        batch=f.integer("batch", 1, 4096),
        fine_threshold=f.numbers("fine_threshold", 1, 1, 0.0, 1.0, scalar=True)[0],
        iou_threshold=f.numbers("iou_threshold", 1, 1, 0.0, 1.0, scalar=True)[0],
        random_weights=f.boolean("random_weights"),
        **_colours(f),
    )


def _crm(data: Any, where: str) -> CrmInfo:
    f = _fields(data, where, CrmInfo)
    block = f.numbers("block", 2, 2, 1, 4096, whole=True)
    return CrmInfo(
        backbone=plain_name(f.text("backbone"), "refiner.backbone", where),
        fusion=plain_name(f.text("fusion"), "refiner.fusion", where),
        decoder=plain_name(f.text("decoder"), "refiner.decoder", where),
        block=(int(block[0]), int(block[1])),
        scales=tuple(f.numbers("scales", 1, 16, 1e-3, 1.0)),
        border=f.integer("border", 0, 4096),
        random_weights=f.boolean("random_weights"),
        **_colours(f),
    )


def to_mask_manifest(bundle: MaskBundle) -> Dict[str, Any]:
    """The content of bundle.json."""
    return {
        "schema": SCHEMA,
        "kind": MASK_REFINER,
        "name": bundle.name,
        "refiner": {"kind": bundle.kind, **dataclasses.asdict(bundle.refiner)},
        "files": {name: dataclasses.asdict(info) for name, info in sorted(bundle.files.items())},
        "provenance": bundle.provenance,
    }


def mask_bundle_hash(bundle: MaskBundle) -> str:
    """SHA-256 (hex) of the canonical manifest, which holds the SHA-256 of every file; the location does not matter."""
    return manifest_hash(to_mask_manifest(bundle))


def mask_bundle_facts(bundle: MaskBundle) -> Dict[str, Any]:
    """What every report says of the bundle that it is about."""
    return {"name": bundle.name, "path": str(bundle.path), "sha256": mask_bundle_hash(bundle)}


def write_mask_bundle(
    target: Union[str, Path],
    *,
    name: str,
    refiner: MaskRefinerInfo,
    files: Mapping[str, Union[bytes, Path]],
    provenance: Optional[Mapping[str, Any]] = None,
) -> MaskBundle:
    """Write a bundle to directory ``target``, all or nothing, and return it as loaded again.

    ``files``: name -> content or a file to copy. An existing bundle is replaced; any other existing file or non-empty
    directory is refused. Raises InputError (place, disk) or BundleError (inconsistent content).
    """

    def manifest(partial: Path, listed: Dict[str, FileInfo]) -> Dict[str, Any]:
        return to_mask_manifest(MaskBundle(partial, name, refiner, listed, dict(provenance or {})))

    write_directory(Path(target), files, manifest, lambda partial: load_mask_bundle(partial, verify=False))
    return load_mask_bundle(target)
