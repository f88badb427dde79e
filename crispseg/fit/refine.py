"""``crispseg fit refiner``: a SparseRefine U-Net on a frozen base."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.errors import InputError
from crispseg.fit.data import IGNORE, Batch, batches, class_weights, normalise
from crispseg.fit.loop import Report, train
from crispseg.fit.losses import merged_iou_loss, near_edges
from crispseg.fit.options import FitOptions
from crispseg.fit.pairs import Pair
from crispseg.fit.train import confusion, finish, load_data, miou, prepare, quiet, shrink
from crispseg.models.bases import BaseInfo, base_info, build_base
from crispseg.models.bases.padding import padded
from crispseg.models.checkpoints import load_checkpoint, load_config, load_strict
from crispseg.models.refiners.sparserefine import SparseRefineConfig, SparseRefiner
from crispseg.sparse.select import entropy, upsample_logits

SCALES = (0.8, 1.3)


class FrozenBase:
    """Low-resolution logits of a batch of full-resolution frames, as the pipeline makes them."""

    def __init__(self, module: nn.Module, info: BaseInfo, options: FitOptions) -> None:
        self.module = module.eval().requires_grad_(False).to(options.device)
        self.info = info
        self.upsample = info.upsample
        self.scale = options.scale
        self.device = options.device

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Tensor:
        """uint8 [B, H, W, 3] RGB -> float32 [B, C, h, w]."""
        size = tuple(max(1, round(side * self.scale)) for side in images.shape[1:3])
        low = np.stack([shrink(image, (size[0], size[1])) for image in images])
        if self.info.channel_order == "bgr":
            low = low[..., ::-1].copy()
        x = normalise(low, self.info.mean, self.info.std, self.device)
        return self.module.forward_logits(x).contiguous()  # type: ignore[operator]


@dataclass(frozen=True)
class GivenBase:
    """A base that somebody else runs, of any origin: ``crispseg fit refiner --bundle`` hands over that of a bundle.

    ``run`` maps a frame uint8 [H,W,3] RGB of any size to float32 logits [1,C,h,w]; ``upsample`` takes them to the
    frame; ``device`` is where the refiner trains.
    """

    run: Callable[[np.ndarray], np.ndarray]
    upsample: str
    device: str = "cpu"

    def __call__(self, images: np.ndarray) -> Tensor:
        """uint8 [B, H, W, 3] RGB -> float32 [B, C, h, w]."""
        return torch.from_numpy(np.concatenate([self.run(image) for image in images])).to(self.device)


def load_base(options: FitOptions) -> FrozenBase:
    """The base called ``options.base_name`` with the weights of ``options.base``, ours or an official checkpoint.

    Raises:
        InputError: no checkpoint or an unknown base named. CheckpointError: it does not belong to that base.
    """
    if options.base is None:
        raise InputError(
            "fit refiner: expected a base, found none; give --base, for example of fit base, or --bundle for the base "
            "of a bundle, which may be a network of your own"
        )
    info = base_info(options.base_name)
    config = load_config(options.base) or None
    module = build_base(info.name, options.num_classes, config, str(options.base))
    load_strict(module, load_checkpoint(options.base), info.droppable, str(options.base), info.refused)
    return FrozenBase(padded(module, info), info, options)


def find_threshold(
    base: Callable[[np.ndarray], Tensor], pairs: Sequence[Pair], density: float, rule: str = "bilinear"
) -> float:
    """Entropy (nats) above which ``density`` (0..1) of the pixels of at most 64 of the frames lie.

    ``base``: uint8 [1, H, W, 3] -> logits float [1, C, h, w]; ``rule``: how they are enlarged.
    """
    values = []
    for index in range(0, len(pairs), max(1, len(pairs) // 64)):
        image = pairs[index][0]
        full = upsample_logits(base(image[None]), (image.shape[0], image.shape[1]), rule)
        values.append(entropy(full, 1).flatten()[::7])
    return round(float(torch.quantile(torch.cat(values)[: 1 << 24], 1 - density)), 4)


def disturbed(logits: Tensor, sigma: float) -> Tensor:
    """Logits [B, C, h, w] plus smooth normal noise of deviation ``sigma`` at the points of a grid four times coarser.

    A base is right more often on the frames that it was trained on than on new ones; a refiner trained on these frames
    learns to trust it too much, most of all in the ensembler. Noise takes that advantage away. It is smooth because a
    base is wrong in patches; white noise would only teach the refiner to average.
    """
    if not sigma:
        return logits
    b, c, h, w = logits.shape
    noise = torch.randn(b, c, max(2, h // 4), max(2, w // 4)).to(logits)
    return logits + sigma * F.interpolate(noise, size=(h, w), mode="bilinear", align_corners=False)


def fit_refiner(options: FitOptions, report: Report = quiet, given: GivenBase | None = None) -> dict:
    """Trains a refiner; cross-entropy on the ensembled and on the refiner's own logits (SparseRefine, section 4).

    Args:
        options: the run; ``base`` and ``base_name`` say which base is frozen below the refiner.
        report: called with one dict a logged step.
        given: the base itself, instead of the options'.

    Returns:
        The record of ``train`` with ``threshold`` and the base's own score added; ``out/best.pt`` holds config and
        averaged weights.

    Raises:
        InputError, CheckpointError: data, base, device or output cannot be used.
    """
    prepare(options)
    base = given or load_base(options)
    groups, validation = load_data(options)
    threshold = options.threshold
    if threshold is None:
        threshold = find_threshold(base, groups[0][1], options.density, base.upsample)
    config = SparseRefineConfig(
        num_classes=options.num_classes,
        planes=options.planes,
        repeats=options.repeats,
        features=options.features,
        channel_order="rgb",
        threshold=threshold,
        ensembler=options.ensembler,
        extent=options.extent,
        upsample=base.upsample,
    )
    module, twin = (SparseRefiner(config).to(options.device) for _ in range(2))
    if options.init is not None:
        load_strict(module, load_checkpoint(options.init), source=str(options.init))
    weights = class_weights(groups[0][1], options.num_classes, options.class_balance).to(options.device)

    def loss(batch: Batch) -> Tensor:
        images, labels = batch
        logits, frames = base(images), torch.from_numpy(images).to(options.device)
        seen = disturbed(logits, options.logit_noise)
        refined = module.refine(frames, seen, module.select(frames, logits))
        truth = torch.from_numpy(labels).to(options.device)
        target = truth[refined.mask].long()
        if not bool((target != IGNORE).any()):
            return (refined.ye.sum() + refined.yo.sum()) * 0
        value = sum(F.cross_entropy(rows, target, weights, ignore_index=IGNORE) for rows in (refined.ye, refined.yo))
        if options.iou_weight:
            dense = upsample_logits(logits, (truth.shape[1], truth.shape[2]), base.upsample).argmax(1)
            for known in (truth, near_edges(truth)):
                value = value + options.iou_weight / 2 * merged_iou_loss(refined.ye, refined.mask, dense, known)
        return torch.as_tensor(value)

    @torch.no_grad()
    def validate(net: nn.Module) -> dict:
        size = (options.num_classes, options.num_classes)
        coarse, fine = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
        active = 0.0
        for image, label in validation:
            logits = base(image[None])
            refined = net.refine(torch.from_numpy(image)[None].to(options.device), logits)  # type: ignore[operator]
            truth = torch.from_numpy(label)
            labels = upsample_logits(logits, (label.shape[0], label.shape[1]), base.upsample)[0].argmax(0).cpu()
            coarse += confusion(labels, truth, options.num_classes)
            labels[refined.mask[0].cpu()] = refined.ye.argmax(1).cpu()
            fine += confusion(labels, truth, options.num_classes)
            active += float(refined.mask.float().mean()) / len(validation)
        scores = {"miou": miou(fine), "miou_base": miou(coarse), "density": 100 * active}
        return {key: round(value, 2) for key, value in scores.items()}

    size = (options.height, options.width)
    record = train(
        module,
        loss,
        lambda start: batches(groups, options, size, SCALES, start),
        validate if validation else None,
        options,
        {"architecture": "sparserefine", **plain(config)},
        report,
        twin,
    )
    return finish({**record, "threshold": threshold, "warnings": no_gain(record["history"])}, options)


def no_gain(history: list[dict]) -> list[str]:
    """What is to be told of a refiner that is no better than its base, which would only cost time."""
    best = max(history, key=lambda entry: entry["miou"], default={})
    if best.get("miou", 0) > best.get("miou_base", -1):
        return []
    return [
        f"refined labels have {best['miou']:.2f} mIoU on the validation frames, those of the base alone "
        f"{best['miou_base']:.2f}: train longer (--steps with --resume), wider (--planes) or with a lower --threshold"
    ]


def plain(config: SparseRefineConfig) -> dict:
    """The config as plain JSON types."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
