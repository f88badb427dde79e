"""From an official CRM checkpoint to a bundle: export, compare every graph with the network, write.

Each of the three graphs gets its inputs from PyTorch, so that errors do not add up, and is compared with the published
form: the decoder with grid_sample and the whole first layer of the MLP. The reads are computed here once more, in
PyTorch, so that the tables of the runtime have something to agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from crispseg.bundle_masks import CrmInfo, MaskBundle, write_mask_bundle
from crispseg.errors import InputError, ParityError
from crispseg.export.compare import open_onnxruntime
from crispseg.export.crm import BACKBONE_FILE, BLOCK, DECODER_FILE, FUSION_FILE, crm_graphs, patch_size
from crispseg.export.dense import to_bytes
from crispseg.export.provenance import checkpoint_notes, origin
from crispseg.models.bases.blocks import resize
from crispseg.models.refiners.crm import (
    CRM,
    MEAN,
    PAD,
    SCALES,
    SHIFT_EPSILON,
    STD,
    cell_centres,
    load_crm,
    normalise,
)

# Largest difference between PyTorch and a graph, in units of the result's standard deviation.
GATE = 1e-3
_SIZE = (48, 80)  # of the compared picture; its features fit the decoder's patch
PAPER = "Shen et al., High Quality Segmentation for Ultra High-resolution Images, CVPR 2022"


def export_crm(
    target: str | Path,
    *,
    weights: str | Path | None = None,
    name: str = "crm",
    random_weights: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> MaskBundle:
    """Write a CRM bundle.

    Args:
        target: directory of the bundle.
        weights: official checkpoint (``model_45705``), or None with ``random_weights``.
        name: of the bundle.
        random_weights: for studies of speed and memory only.
        seed: of random weights.
        progress: told what is being done.

    Returns:
        The bundle; ``provenance["refiner"]["parity"]`` holds the measured differences.

    Raises:
        InputError: neither or both of weights and random weights, or the place cannot be written.
        CheckpointError: the file is not a CRM checkpoint.
        ParityError: a graph differs from the network.
    """
    if (weights is None) != random_weights:
        raise InputError("export crm: expected --weights FILE or --random-weights, found both or neither; give one")
    tell = progress or (lambda text: None)
    tell("reading")
    model, source = _network(weights, seed)
    tell("exporting")
    graphs = crm_graphs(model)
    tell("comparing")
    parity = compare(model, graphs)
    gate(parity)
    tell("writing")
    info = CrmInfo(
        backbone=BACKBONE_FILE,
        fusion=FUSION_FILE,
        decoder=DECODER_FILE,
        block=BLOCK,
        scales=SCALES,
        border=PAD,
        mean=_of_255(MEAN),
        std=_of_255(STD),
        random_weights=random_weights,
    )
    provenance = {
        **origin(["refiner"] if random_weights else [], "masks"),
        "paper": PAPER,
        "refiner": {**source, "parity": parity},
    }
    files = {file: to_bytes(graph) for file, graph in graphs.items()}
    return write_mask_bundle(target, name=name, refiner=info, files=files, provenance=provenance)


def _network(weights: str | Path | None, seed: int) -> tuple[CRM, dict[str, Any]]:
    if weights is not None:
        model, dropped = load_crm(weights)
        return model, checkpoint_notes(weights, dropped)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CRM().eval(), {"random_weights": True, "seed": seed}


def _of_255(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (round(255 * value, 6) for value in values)
    return red, green, blue


def gate(parity: Mapping[str, Mapping[str, float]]) -> None:
    """Raise ParityError that names the first graph above the gate, or with a result that is not finite."""
    for hop, figures in parity.items():
        if not figures["max_error_std"] <= GATE:  # also catches NaN
            raise ParityError(
                f"CRM {hop}: expected at most {GATE} standard deviations from PyTorch, found "
                f"{figures['max_error_std']:.3g}; nothing was written"
            )


@torch.no_grad()
def compare(model: CRM, graphs: Mapping[str, onnx.ModelProto]) -> dict[str, dict[str, float]]:
    """Largest difference between PyTorch and each graph in ONNX Runtime (CPU), absolute and by standard deviation."""
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.integers(0, 256, (*_SIZE, 3), dtype=np.uint8))
    x = normalise(image, torch.from_numpy(random.random(_SIZE, np.float32)))
    branches = model.branches(x)
    features = model.aspp_(*branches)
    projected = model.project(features)
    height, width = projected.shape[2:]
    found = {"backbone": _run(graphs[BACKBONE_FILE], {"picture": x})}
    _, second, third = branches
    inputs = {"first": F.pad(branches[0], (1, 1, 1, 1)), "second": second, "third": third}
    for level, source in ((2, second), (3, third)):
        inputs[f"rows{level}"] = _matrix(source.shape[2], height)
        inputs[f"columns{level}"] = _matrix(source.shape[3], width).t().contiguous()
    found["fusion"] = _run(graphs[FUSION_FILE], inputs)
    rows, columns = (_points(length, count) for length, count in zip(BLOCK, (height, width), strict=True))
    patch = patch_size(BLOCK)
    cell = torch.tensor([2 / 700, 2 / 900])
    padded = F.pad(projected, (0, patch[1] - width, 0, patch[0] - height), value=float("nan"))  # cells never read
    inputs = {"projected": padded.permute(0, 3, 1, 2).contiguous()}
    for axis, points, count, extent in (("row", rows, height, cell[0]), ("column", columns, width, cell[1])):
        inputs[f"{axis}_cells"], inputs[f"{axis}_terms"] = _reads(points, count, extent)
    found["decoder"] = _run(graphs[DECODER_FILE], inputs)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    wanted = {
        "backbone": branches,
        "fusion": (projected.permute(0, 3, 1, 2),),
        "decoder": (model.query(features, grid, cell).reshape(BLOCK),),
    }
    return {hop: _difference(wanted[hop], found[hop]) for hop in wanted}


def _run(graph: onnx.ModelProto, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    session = open_onnxruntime(to_bytes(graph))
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def _difference(wanted: tuple[Tensor, ...], found: list[np.ndarray]) -> dict[str, float]:
    pairs = [(a.numpy(), b) for a, b in zip(wanted, found, strict=True)]
    errors = [float(np.abs(a - b).max()) for a, b in pairs]
    spread = [error / max(float(a.std()), 1e-12) for error, (a, _) in zip(errors, pairs, strict=True)]
    return {"max_error": _short(max(errors)), "max_error_std": _short(float(np.max(spread)))}  # NaN stays NaN


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _matrix(source: int, target: int) -> Tensor:
    """Interpolation with aligned corners, one row of zeros before and after: what resizing a unit matrix gives."""
    unit = torch.eye(source)[None, None]
    return F.pad(resize(unit, (target, source))[0, 0], (0, 0, 1, 1))


def _points(length: int, count: int) -> Tensor:
    """Corners, every centre of a cell (areas of zero), and points at random."""
    fixed = torch.cat([torch.tensor([-1.0, 1.0]), cell_centres(count)])
    random = np.random.default_rng(count).uniform(-1, 1, length - len(fixed)).astype(np.float32)
    return torch.cat([fixed, torch.from_numpy(random)])


def _reads(points: Tensor, count: int, extent: Tensor) -> tuple[Tensor, Tensor]:
    """Cells int64 [2*Q] and terms float32 [3,2*Q] of the decoder."""
    cells, relative = [], []
    for sign in (-1, 1):
        shifted = (points + (sign / count + SHIFT_EPSILON)).clamp(-1 + SHIFT_EPSILON, 1 - SHIFT_EPSILON)
        cells.append((((shifted + 1) * count - 1) / 2).round().long())
        relative.append((points - cell_centres(count)[cells[-1]]) * count)
    terms = torch.stack([torch.cat(relative), points.repeat(2), (extent * count).expand(2 * len(points))])
    return torch.cat(cells), terms.contiguous()
