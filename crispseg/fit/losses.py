"""Losses that need more than the refined rows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from crispseg.fit.data import IGNORE


def near_edges(target: Tensor, ratio: float = 0.02) -> Tensor:
    """Labels uint8 [B, H, W], 255 wherever no other label (255 included) lies within ``ratio`` of the diagonal.

    The band is that of boundary IoU (Cheng et al., 2021, 2 % of the diagonal), so that the soft IoU inside it stands
    for that measure.
    """
    distance = max(1, round(ratio * math.hypot(target.shape[1], target.shape[2])))
    values = target[:, None].float()
    highest, lowest = values, -values
    for window in ((2 * distance + 1, 1), (1, 2 * distance + 1)):
        padding = (window[0] // 2, window[1] // 2)
        highest, lowest = (F.max_pool2d(v, window, 1, padding) for v in (highest, lowest))
    return torch.where((highest == -lowest)[:, 0], IGNORE, target)


def merged_iou_loss(rows: Tensor, mask: Tensor, base: Tensor, target: Tensor) -> Tensor:
    """1 - mean soft IoU of the label map that refined rows and base labels make together.

    Cross-entropy counts pixels, so that thin and rare classes (poles, signs) hardly weigh in it; mIoU counts classes.
    Soft IoU after Rahman and Wang, "Optimizing intersection-over-union in deep neural networks for image segmentation"
    (2016): intersection sum(p t), union sum(p + t - p t). Pixels that are not refined enter with the base's label, as
    constants, so that the loss is that of the merged map and not of the active pixels alone.

    Args:
        rows: float [N, C], logits at the active pixels in raster order.
        mask: bool [B, H, W], the active pixels.
        base: integer [B, H, W], class of highest logit of the base.
        target: integer [B, H, W], class or 255 = ignored.

    Returns:
        Scalar; the mean is over the classes that occur in the batch's target (0 when none does).
    """
    classes = rows.shape[1]
    known = target != IGNORE
    truth = target[mask]
    keep = truth != IGNORE
    p = rows[keep].softmax(1)
    hot = F.one_hot(truth[keep].long(), classes).to(p.dtype)
    fixed = known & ~mask
    held, right = base[fixed].long(), base[fixed & (base == target)].long()
    total = torch.bincount(target[known].long(), minlength=classes)
    hit = (p * hot).sum(0) + torch.bincount(right, minlength=classes)
    union = p.sum(0) + torch.bincount(held, minlength=classes) + total - hit
    occurs = total > 0
    if not bool(occurs.any()):
        return rows.sum() * 0
    return 1 - (hit[occurs] / union[occurs]).mean()
