"""Upsampled logits, entropy and the choice of pixels to refine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from crispseg.sparse.maps import Size

#: Ways to read low-resolution logits at full resolution. ``nearest``: source row = floor(i * h / H), the way
#: SparseRefine trains; ``bilinear``: half-pixel centres; ``bilinear_corners``: corners aligned.
UPSAMPLINGS = ("nearest", "bilinear", "bilinear_corners")
_LEAST = 1e-5


@dataclass(frozen=True)
class Selection:
    """Result of ``select``.

    Attributes:
        mask: bool [B, H, W], the active pixels (at most `capacity` an image).
        coords: long [N, 3], (b, y, x) of the active pixels in raster order.
        labels: uint8 [B, H, W], class of highest logit, the lowest class on ties.
        confidence: uint8 [B, H, W], round(255 * highest probability).
        found: long [B], pixels above the threshold before `capacity` is applied.
    """

    mask: Tensor
    coords: Tensor
    labels: Tensor
    confidence: Tensor
    found: Tensor


def entropy(logits: Tensor, dim: int = -1) -> Tensor:
    """Entropy of softmax(logits) along `dim`, which goes; nats. Only the logarithm's argument is clamped, at 1e-5."""
    p = logits.softmax(dim)
    return -(p * p.clamp(min=_LEAST).log()).sum(dim)


def _axis(length: int, low: int, mode: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Both source positions and the weight of the second one, for every position of one axis."""
    i = torch.arange(length, device=device)
    if mode == "nearest":
        first = i * low // length
        return first, first, torch.zeros(length, device=device)
    position = i.to(torch.float32)
    if mode == "bilinear":
        position = ((position + 0.5) * (low / length) - 0.5).clamp(min=0)
    elif mode == "bilinear_corners":
        position = position * ((low - 1) / (length - 1) if length > 1 else 0.0)
    else:
        raise ValueError(f"upsample: expected one of {UPSAMPLINGS}, found {mode!r}")
    first = position.floor().long().clamp(max=low - 1)
    return first, (first + 1).clamp(max=low - 1), position - first


def upsample_logits(logits: Tensor, size: Size, mode: str = "nearest") -> Tensor:
    """Logits float [B, C, h, w] at every pixel: float [B, C, H, W]."""
    y0, y1, fy = _axis(size[0], logits.shape[2], mode, logits.device)
    x0, x1, fx = _axis(size[1], logits.shape[3], mode, logits.device)
    if mode == "nearest":
        return logits[:, :, y0][..., x0]
    fy = fy.to(logits.dtype)[:, None]
    rows = logits[:, :, y0] * (1 - fy) + logits[:, :, y1] * fy
    fx = fx.to(logits.dtype)
    return rows[..., x0] * (1 - fx) + rows[..., x1] * fx


def logits_at(logits: Tensor, coords: Tensor, size: Size, mode: str = "nearest") -> Tensor:
    """Logits float [B, C, h, w] at sites int [N, 3] of a grid of `size`: float [N, C]."""
    b, y, x = coords.long().unbind(1)
    y0, y1, fy = (part[y] for part in _axis(size[0], logits.shape[2], mode, logits.device))
    x0, x1, fx = (part[x] for part in _axis(size[1], logits.shape[3], mode, logits.device))
    last = logits.permute(0, 2, 3, 1)
    if mode == "nearest":
        return last[b, y0, x0]
    fy, fx = fy.to(logits.dtype)[:, None], fx.to(logits.dtype)[:, None]
    left = last[b, y0, x0] * (1 - fy) + last[b, y1, x0] * fy
    right = last[b, y0, x1] * (1 - fy) + last[b, y1, x1] * fy
    return left * (1 - fx) + right * fx


def lowest_argmax(logits: Tensor, dim: int) -> Tensor:
    """Index of the highest value along `dim` as uint8, the lowest index on ties."""
    classes = logits.shape[dim]
    shape = [1] * logits.dim()
    shape[dim] = classes
    index = torch.arange(classes, device=logits.device).view(shape)
    best = logits == logits.amax(dim, keepdim=True)
    return torch.where(best, index, classes - 1).amin(dim).to(torch.uint8)


def keep_highest(mask: Tensor, score: Tensor, capacity: int) -> Tensor:
    """Mask bool [H, W] cut to the `capacity` pixels of highest score; ties go to the first in raster order."""
    where = mask.flatten().nonzero().squeeze(1)
    if where.shape[0] <= capacity:
        return mask
    order = score.flatten()[where].sort(descending=True, stable=True).indices
    kept = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
    kept[where[order[:capacity]]] = True
    return kept.view_as(mask)


def select(
    logits: Tensor,
    size: Size,
    threshold: float,
    upsample: str = "nearest",
    capacity: Optional[int] = None,
) -> Selection:
    """Labels, confidence and the pixels whose entropy is above `threshold` (strictly).

    Args:
        logits: float32 [B, C, h, w], C <= 255.
        size: (H, W) of the image.
        threshold: entropy in nats.
        upsample: one of UPSAMPLINGS.
        capacity: most active pixels of an image; None for no limit.
    """
    # Nothing but the grid changes in nearest upsampling, so the arithmetic is done once per low-resolution pixel.
    dense = logits if upsample == "nearest" else upsample_logits(logits, size, upsample)
    score = entropy(dense, 1)[:, None]
    labels = lowest_argmax(dense, 1)[:, None]
    confidence = (dense.softmax(1).amax(1, keepdim=True) * 255).round().to(torch.uint8)
    if upsample == "nearest":
        score, labels, confidence = (upsample_logits(part, size) for part in (score, labels, confidence))
    score = score[:, 0]
    mask = score > threshold
    found = mask.flatten(1).sum(1)
    if capacity is not None and math.isfinite(capacity):
        mask = torch.stack([keep_highest(one, value, capacity) for one, value in zip(mask, score)])
    return Selection(mask, mask.nonzero(), labels[:, 0], confidence[:, 0], found)
