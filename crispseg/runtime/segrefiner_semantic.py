"""SegRefiner's semantic mode.

All steps but the last see the whole picture made small; the last one runs in windows at full resolution where the
small result is undecided.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

import numpy as np

from crispseg.bundle_masks import SegRefinerInfo
from crispseg.runtime.mask_resize import normalised, resize_nearest
from crispseg.runtime.mask_windows import Canvas, crops, find_windows, with_border
from crispseg.runtime.segrefiner_sampling import Draw, Network, Sampled, sample, sigmoid, with_mask

MIN_FOREGROUND = 128  # px; a mask with no more foreground than this becomes empty, as in the official code


class Semantic(NamedTuple):
    """``mask`` bool [H, W]; ``probability`` float32 [H, W], None for an empty mask; windows before and after."""

    mask: np.ndarray
    probability: Optional[np.ndarray]
    candidates: int = 0
    windows: int = 0
    windows_run: int = 0


def refine_semantic(
    network: Network,
    photo: np.ndarray,
    mask: np.ndarray,
    info: SegRefinerInfo,
    *,
    draw: Draw,
    batch: int,
    progress: Optional[Callable[[int, int], None]] = None,
) -> Semantic:
    """Refine one mask of a picture.

    Args:
        network: see ``sample``.
        photo: uint8 [H, W, 3] RGB.
        mask: bool [H, W].
        info: of the bundle.
        draw: see ``seeded_draw``; the object's number is 0.
        batch: most windows in one call.
        progress: called with (calls of the network done, calls in all), first when their number is known.

    A picture smaller than a window is extended to its size to the right and below by repeating the last pixels, the
    mask alike (the official code fails there).
    """
    height, width = mask.shape
    if int(mask.sum()) <= MIN_FOREGROUND:
        return Semantic(np.zeros_like(mask), None)
    made = global_steps(network, photo, mask, info, draw)
    probability = resize_nearest(made.probability[0, 0], height, width)
    whole = probability >= 0.5
    lower, right = max(info.size - height, 0), max(info.size - width, 0)
    if lower or right:
        photo = np.pad(photo, ((0, lower), (0, right), (0, 0)), "edge")
        whole = np.pad(whole, ((0, lower), (0, right)), "edge")
    found = find_windows(
        made.fine[0, 0], whole.shape[0], whole.shape[1], info.size, info.fine_threshold, info.iou_threshold
    )
    boxes = with_border(whole, found.boxes)
    canvas = Canvas(*whole.shape)
    steps, calls = len(info.fine_left) - 1, -(-len(boxes) // batch)
    for done, start in enumerate(range(0, len(boxes), batch)):
        if progress is not None:
            progress(steps + done, steps + calls)
        some = boxes[start : start + batch]
        logits = network(window_input(photo, whole, some, info), np.zeros(len(some), np.int64))
        canvas.add(sigmoid(logits)[:, 0], some)
    mean, covered = canvas.mean()
    mean, covered = mean[:height, :width], covered[:height, :width]
    probability = np.where(covered, mean, probability)
    return Semantic(probability >= 0.5, probability, found.candidates, len(found.boxes), len(boxes))


def global_steps(network: Network, photo: np.ndarray, mask: np.ndarray, info: SegRefinerInfo, draw: Draw) -> Sampled:
    """All steps but the cleanest on the picture resized to the network's input (nearest, aspect not kept).

    ``photo``: uint8 [H, W, 3] RGB; ``mask``: float32 [H, W] in 0..1. Returns the result at the network's size.
    """
    size = info.size
    image = normalised(resize_nearest(photo, size, size), info.mean, info.std).transpose(2, 0, 1)[None]
    coarse = resize_nearest(mask, size, size)[None, None]
    steps = range(len(info.fine_left) - 1, 0, -1)
    return sample(network, image, coarse, steps, info.fine_left, draw, [0])


def window_input(photo: np.ndarray, mask: np.ndarray, boxes: np.ndarray, info: SegRefinerInfo) -> np.ndarray:
    """Float32 [N, 4, S, S] of the windows at full resolution."""
    image = normalised(crops(photo, boxes), info.mean, info.std).transpose(0, 3, 1, 2)
    return with_mask(image, crops(mask, boxes)[:, None])
