"""``crispseg fit``: a small base from scratch, and a refiner on a frozen base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from crispseg.errors import InputError
from crispseg.fit.data import IGNORE, Batch, batches, class_weights, normalise, read_pairs, render_scenes
from crispseg.fit.loop import Report, train
from crispseg.fit.options import FitOptions
from crispseg.fit.pairs import CACHE_BYTES, Cache, Pairs
from crispseg.models.checkpoints import load_checkpoint, load_strict
from crispseg.report import write_json

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
SCALES = (0.35, 1.05)  # around and between the base's own scale and full size, so that it works at both


def quiet(_: dict) -> None:
    """A report that says nothing."""


def load_data(options: FitOptions) -> tuple[list[tuple[float, Pairs]], Pairs]:
    """Weighted groups of training pairs, and the validation pairs (scenes of other seeds when no folder is named)."""
    cache = Cache(CACHE_BYTES)
    groups: list[tuple[float, Pairs]] = []
    real = Pairs([], cache)
    for images, labels in options.folders:
        real = real + read_pairs(images, labels, options.num_classes, cache)
    if real:
        groups.append((1 - options.scene_share if options.scenes else 1.0, real))
    size = (options.height, options.width)
    if options.scenes:
        rendered = render_scenes(options.scenes, *size, 1000 * (options.seed + 1), cache)
        groups.append((options.scene_share if real else 1.0, rendered))
    if options.validation:
        return groups, read_pairs(*options.validation, options.num_classes, cache)
    return groups, render_scenes(min(20, options.scenes), *size, 0, cache)


def prepare(options: FitOptions) -> None:
    """Seeds, threads and device.

    Raises:
        InputError: the device is not there.
    """
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        torch.device(options.device)
    except RuntimeError:
        raise InputError(f"--device {options.device}: expected cpu, cuda or cuda:N; use --device cpu") from None
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {options.device}: expected a CUDA device, PyTorch finds none; use --device cpu")


def shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pipeline's own resize of a frame (Pillow bilinear, antialiased): uint8 [H, W, 3] -> [*size, 3]."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def confusion(predicted: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """int64 [num_classes, num_classes], rows = truth; ignored pixels left out."""
    keep = label != IGNORE
    index = label[keep].long() * num_classes + predicted[keep].long()
    return torch.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def miou(matrix: Tensor) -> float:
    """Mean IoU in percent, of a ``confusion`` matrix, over the classes that occur in truth or prediction."""
    hit = matrix.diag().double()
    union = matrix.sum(0) + matrix.sum(1) - hit
    return float((hit[union > 0] / union[union > 0]).mean() * 100)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, h, w] -> [B, C, *size], bilinear with half-pixel centres: the rule that SmallNet's bundles record."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def fit_base(options: FitOptions, report: Report = quiet) -> dict:
    """Trains a SmallNet from scratch; weighted cross-entropy at the scaled resolution.

    Returns:
        The record of ``train``; ``out/best.pt`` holds config and averaged weights.

    Raises:
        InputError: data, device or output cannot be used.
    """
    from crispseg.models.bases.small import SmallNet

    prepare(options)
    groups, validation = load_data(options)
    module, twin = (SmallNet(options.num_classes, finest=options.stride // 4 - 1).to(options.device) for _ in range(2))
    if options.init is not None:
        # A pyramid that ends earlier has no use for the finer levels of the checkpoint.
        finer = [rf"(laterals|smooth)\.{level}\." for level in range(module.finest)]
        load_strict(module, load_checkpoint(options.init), finer, source=str(options.init))
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = class_weights(groups[0][1], options.num_classes, options.class_balance).to(options.device)
    size = options.base_size()

    def loss(batch: Batch) -> Tensor:
        images, labels = batch
        x = normalise(images, MEAN, STD, options.device)
        target = torch.from_numpy(labels).to(options.device).long()
        logits = upsample(module.forward_logits(x), size)
        return F.cross_entropy(logits, target, weights, ignore_index=IGNORE)

    @torch.no_grad()
    def validate(net: nn.Module) -> dict:
        low, full = (torch.zeros(options.num_classes, options.num_classes, dtype=torch.long) for _ in range(2))
        for image, label in validation:
            truth = torch.from_numpy(label)
            for matrix, seen in ((low, shrink(image, size)), (full, image)):
                logits = net.forward_logits(normalise(seen[None], MEAN, STD, options.device))  # type: ignore[operator]
                matrix += confusion(upsample(logits, label.shape)[0].argmax(0).cpu(), truth, options.num_classes)
        return {"miou": round(miou(low), 2), "miou_full": round(miou(full), 2)}

    check = validate if validation else None
    record = train(
        module,
        loss,
        lambda start: batches(groups, options, size, SCALES, start),
        check,
        options,
        module.config,
        report,
        twin,
    )
    return finish(record, options)


def finish(record: dict, options: FitOptions) -> dict:
    """Writes ``out/report.json``, completely or not at all, and returns the record.

    Raises:
        InputError: it cannot be written.
    """
    write_json(Path(options.out) / "report.json", record)
    return record
