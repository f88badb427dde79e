"""Assemble a bundle: base, the same base at full resolution when asked for, and refiner.

Every exported file is compared with the torch network it comes from before the bundle is written; the figures go into
the bundle's provenance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from crispseg.bundle import CONTRACT, Bundle, NetInfo, RefinerInfo, check_target, write_bundle
from crispseg.classes import ClassInfo, check_classes, load_classes
from crispseg.engines.tensorrt.operators import advice
from crispseg.errors import InputError, ParityError
from crispseg.export import dense
from crispseg.export.compare import open_onnxruntime
from crispseg.export.networks import Network, refiner_network
from crispseg.export.provenance import origin
from crispseg.export.refiner import export_refiner
from crispseg.export.sources import Foreign, Source, open_source, tensorrt_gaps
from crispseg.export.verify_recorded import record
from crispseg.models.bases import BaseInfo, base_info

REFINERS = ("sparserefine",)
# Share of the pixels that a refiner takes at most, unless told. SparseRefine works at about 12 % on average; twice
# that leaves room for hard frames and still bounds memory and the worst frame's time.
CAPACITY_SHARE = 0.25
# Largest difference between torch and an exported file, in units of the logits' standard deviation.
GATE, GATE_HALF = 1e-3, 5e-2
_CHECK_SIZE = (96, 128)

Progress = Callable[[str], None]


def export_bundle(
    base: str | Foreign,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    refiner: str | None = "sparserefine",
    refiner_weights: str | Path | None = None,
    height: int,
    width: int,
    scale: float = 0.5,
    classes: str | Path | Sequence[ClassInfo] = "cityscapes",
    threshold: float | None = None,
    capacity: int | None = None,
    upsample: str | None = None,
    logits: str = "native",
    baseline: bool = False,
    random_weights: bool = False,
    half_weights: bool = False,
    force: bool = False,
    refiner_settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bundle:
    """Export networks for frames of ``height`` x ``width`` and write them as a bundle.

    Args:
        base: architecture, a key of ``crispseg.models.bases.BASES``; or a network outside of it.
        out: directory of the bundle; an existing bundle there is replaced, anything else is refused.
        weights: checkpoint of the base.
        refiner: "sparserefine", or None for a bundle without one.
        refiner_weights: checkpoint of the refiner.
        height: rows of the label map.
        width: columns of the label map.
        scale: the base sees the frame at this share of either side, 0 < scale <= 1; sides are rounded.
        classes: "cityscapes", "camvid", a class file, or the table itself.
        threshold: entropy (nats) above which a pixel is refined; None takes the refiner's own.
        capacity: most pixels refined a frame; None takes a quarter of all (the most uncertain ones stay).
        upsample: how the refiner reads low-resolution logits; None takes the rule it was trained with.
        logits: "native" ends the base at its own stride, before its last upsampling. "input" ends it at the size of
            its input: so the official refiners were trained, which read logits with "nearest".
        baseline: also export the base at full resolution. Its weights are stored once for both.
        random_weights: untrained weights where no checkpoint is given. The bundle says so. Such a base is unsure
            everywhere: every frame then holds ``capacity`` active pixels, which sets the density of a speed study.
        half_weights: store weights in half precision; the arithmetic stays single precision.
        force: keep a file that does not compute what its source computes; the bundle says so.
        refiner_settings: fields of ``SparseRefineConfig`` that replace the checkpoint's (or the defaults).
        name: of the bundle.
        seed: of random weights.
        progress: called with one line before every step.

    Returns:
        The bundle as written.

    Raises:
        InputError: an argument that cannot be used, or ``out`` cannot be written.
        CheckpointError: a checkpoint of another network.
        UnsupportedOp: a network that cannot be exported.
        ParityError: an exported file does not compute what torch computes.
    """
    say = progress or (lambda _: None)
    table = load_classes(classes) if isinstance(classes, (str, Path)) else check_classes(classes)
    _check(height, width, scale, logits, refiner, refiner_weights, capacity, threshold)
    if isinstance(base, str):
        base_info(base)  # a name that is none is told before anything that is missing with it
    brings = isinstance(base, Foreign) and base.library is None  # a foreign network may bring its weights along
    _check_weights(weights, brings, refiner, refiner_weights, random_weights)
    check_target(out)  # now, not after minutes of export
    low = (max(1, round(height * scale)), max(1, round(width * scale)))
    say(f"load {base.name if isinstance(base, Foreign) else base}")
    source = open_source(base, len(table), weights, low, seed)
    info = source.info
    for text in source.notes.get("assumed", ()):
        say(f"assumed: {text}")
    refiner_net = None
    if refiner is not None:
        say(f"load {refiner}")
        settings = dict(refiner_settings or {})
        settings.update({k: v for k, v in (("threshold", threshold), ("upsample", upsample)) if v is not None})
        refiner_net = refiner_network(len(table), refiner_weights, settings, seed)

    sizes = {"base": low, **({"baseline": (height, width)} if baseline else {})}
    models, infos, notes = {}, {}, {}
    for role, size in sizes.items():
        say(f"export {role} at {size[0]}x{size[1]}")
        models[f"{role}.onnx"] = model = _export_dense(source, size, logits == "native", half_weights)
        say(f"compare {role} with its source")
        parity, wrong = _dense_parity(source, model, role, half_weights)
        notes[role] = {**source.notes, **source.notes_at(*size), "parity": parity, **_gate(wrong, force, say)}
        if role == "base":
            notes[role]["recorded"] = record(model, torch.get_num_threads())
        gaps = tensorrt_gaps(model)
        if gaps:
            notes[role]["tensorrt_unsupported"] = gaps
            for release, nodes in gaps.items():
                for text in advice(release, nodes):
                    say(text)
        infos[role] = _net_info(role, size, model, info, source.random)
    files: dict[str, bytes | Path] = {}
    if baseline:
        graphs, shared = dense.share_weights(models)
        files.update(graphs)
        files[dense.WEIGHTS_FILE] = shared
    else:
        files.update({file: dense.to_bytes(model) for file, model in models.items()})

    refiner_info = None
    if refiner_net is not None:
        if capacity is None:
            capacity = math.ceil(CAPACITY_SHARE * height * width)
        say("export refiner")
        shape = (len(table), infos["base"].logits_height, infos["base"].logits_width)
        model = _export_refiner(refiner_net, (height, width), shape, capacity, half_weights)
        files["refiner.onnx"] = dense.to_bytes(model)
        say("compare refiner with torch")
        parity, wrong = _refiner_parity(refiner_net, half_weights)
        notes["refiner"] = {**refiner_net.source, "parity": parity, **_gate(wrong, force, say)}
        refiner_info = _refiner_info(refiner_net, capacity)
    random = [role for role, net in (("base", source), ("refiner", refiner_net)) if net is not None and net.random]
    say("write bundle")
    return write_bundle(
        out,
        name=name or f"{info.name}{'+' + refiner if refiner else ''}{' (random weights)' if random else ''}",
        height=height,
        width=width,
        classes=table,
        base=infos["base"],
        baseline=infos.get("baseline"),
        refiner=refiner_info,
        provenance=_provenance(notes, random, info, scale, half_weights),
        files=files,
    )


def _check(
    height: int,
    width: int,
    scale: float,
    logits: str,
    refiner: str | None,
    refiner_weights: str | Path | None,
    capacity: int | None,
    threshold: float | None,
) -> None:
    if min(height, width) < 8 or max(height, width) > 16384:
        raise InputError(f"size {height}x{width}: expected sides of 8 to 16384 pixels, height first")
    if not 0 < scale <= 1:
        raise InputError(f"scale {scale}: expected more than 0 and at most 1")
    if logits not in ("native", "input"):
        raise InputError(f"logits {logits!r}: expected native or input")
    if refiner is not None and refiner not in REFINERS:
        raise InputError(f"refiner {refiner!r} is unknown: expected {', '.join(REFINERS)} or none")
    if refiner is None and (refiner_weights is not None or capacity is not None or threshold is not None):
        raise InputError("refiner weights, threshold or capacity given without a refiner; name one or leave them out")
    if capacity is not None and not 1 <= capacity <= height * width:
        raise InputError(f"capacity {capacity}: expected 1 to {height * width} pixels")
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"threshold {threshold}: expected a finite number of nats, 0 to ln(classes)")


def _check_weights(
    weights: str | Path | None,
    brings: bool,
    refiner: str | None,
    refiner_weights: str | Path | None,
    random_weights: bool,
) -> None:
    missing = [] if weights is not None or brings else ["--weights"]
    if refiner is not None and refiner_weights is None:
        missing.append("--refiner-weights")
    if missing and not random_weights:
        alone = "--refiner none for the base alone, or " if "--refiner-weights" in missing else ""
        raise InputError(
            f"no checkpoint: expected {' and '.join(missing)}, found none; give it (crispseg fit trains one), {alone}"
            "--random-weights for a bundle that only measures speed"
        )
    if random_weights and not missing:
        raise InputError("random weights asked for, but every checkpoint is given; leave one of them out")


def _export_dense(source: Source, size: tuple[int, int], native: bool, half: bool) -> onnx.ModelProto:
    model = source.export(size[0], size[1], native)
    shape = tuple(d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim)
    if not native and shape[2:] != size:
        raise InputError(
            f"--logits input: the network ends at {shape[2]}x{shape[3]} for an image of {size[0]}x{size[1]}; "
            "leave it out"
        )
    return dense.to_half_weights(model) if half else model


def _gate(wrong: str, force: bool, say: Progress) -> dict[str, str]:
    """Nothing, or with ``force`` a note in place of the error."""
    if not wrong:
        return {}
    if not force:
        raise ParityError(f"{wrong}; the export is wrong, nothing was written (--force writes it nevertheless)")
    say(f"FORCED: {wrong}")
    return {"forced": wrong}


def _dense_parity(source: Source, model: onnx.ModelProto, role: str, half: bool) -> tuple[dict[str, Any], str]:
    """(figures, what is wrong with them)."""
    found = source.parity(model, torch.get_num_threads())
    gate = GATE_HALF if half or getattr(source, "half", False) else GATE
    wrong = ""
    if not found["max_error_std"] <= gate:
        wrong = (
            f"{role}.onnx: expected logits within {gate:g} of their standard deviation of the source's, found "
            f"{found['max_error_std']:.3g}"
        )
    return {"input": "standard normal, seed 0", "gate": gate, **_rounded(found)}, wrong


def _net_info(role: str, size: tuple[int, int], model: onnx.ModelProto, info: BaseInfo, random: bool) -> NetInfo:
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    return NetInfo(
        file=f"{role}.onnx",
        architecture=info.name,
        height=size[0],
        width=size[1],
        channel_order=info.channel_order,
        mean=info.mean,
        std=info.std,
        resize="antialias",
        logits_height=shape[2],
        logits_width=shape[3],
        upsample=info.upsample,
        random_weights=random,
    )


def _export_refiner(
    net: Network, size: tuple[int, int], logits: tuple[int, int, int], capacity: int, half: bool
) -> onnx.ModelProto:
    return export_refiner(
        net.module,
        height=size[0],
        width=size[1],
        logits_shape=logits,
        capacity=capacity,
        weights="float16" if half else "float32",
    )


def _refiner_parity(net: Network, half: bool) -> tuple[dict[str, Any], str]:
    """Compare torch with the portable bodies in ONNX Runtime, on a small frame with about 12 % active pixels."""
    height, width = _CHECK_SIZE
    count = net.module.config.num_classes
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    logits = _blobs(rng, count, height // 8, width // 8)
    model = _export_refiner(net, (height, width), (count, height // 8, width // 8), height * width, half)
    session = open_onnxruntime(dense.to_bytes(model), torch.get_num_threads())
    labels, active = session.run(["labels", "count"], {"image": image, "logits": logits})
    with torch.no_grad():
        refined = net.module.refine(torch.from_numpy(image)[None], torch.from_numpy(logits))
        wanted = net.module.labels(refined, torch.from_numpy(logits))[0].numpy()
    expected = int(refined.mask.sum())
    agreement = float((labels == wanted).mean())
    gate = 0.98 if half else 0.999
    # Entropies that equal the threshold to the last bit may fall on either side.
    wrong = ""
    if abs(int(active[0]) - expected) > 2 + expected // 1000 or agreement < gate:
        wrong = (
            f"refiner.onnx: expected {expected} active pixels and at least {gate:.1%} of torch's labels, found "
            f"{int(active[0])} and {agreement:.3%}"
        )
    figures = {
        "hop": "torch -> onnxruntime (portable bodies)",
        "input": f"{height}x{width} noise, seed 0",
        "active": int(active[0]),
        "active_torch": expected,
        "labels_agreement": round(agreement, 6),
    }
    return figures, wrong


def _blobs(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    # Confident logits, except where the leading class changes to its neighbour within a few cells.
    best = (np.arange(height)[:, None] * 3 // height + np.arange(width)[None] * 3 // width) % count
    logits = rng.standard_normal((1, count, height, width)).astype(np.float32)
    np.put_along_axis(logits, best[None, None], np.float32(12), axis=1)
    unsure = rng.random((height, width)) < 0.12
    logits[0][:, unsure] = rng.standard_normal((count, int(unsure.sum()))).astype(np.float32)
    return logits


def _refiner_info(net: Network, capacity: int) -> RefinerInfo:
    config = net.module.config
    return RefinerInfo(
        file="refiner.onnx",
        kind="sparserefine",
        contract=CONTRACT,
        planes=tuple(config.planes),
        repeats=tuple(config.level_repeats),
        features=tuple(config.features),
        extent=config.extent,
        ensembler=config.ensembler,
        upsample=config.upsample,
        threshold=float(config.threshold),
        capacity=capacity,
        random_weights=net.random,
    )


def _provenance(
    notes: Mapping[str, Any], random: Sequence[str], info: BaseInfo, scale: float, half: bool
) -> dict[str, Any]:
    out = origin(random, "labels")
    out["scale"] = scale
    out["weights_precision"] = "float16" if half else "float32"
    if info.paper:
        out["paper"] = info.paper
    out.update(notes)
    return out


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) and v != 1 else v for k, v in values.items()}
