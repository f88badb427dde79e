"""SegRefiner's instance mode: every object is cut out with a border, resized to the network's input and pasted back.

The aspect is not kept and nothing is anti-aliased: the network was trained so. Objects run in batches; the result of
one does not depend on which others share its batch.
"""

from __future__ import annotations

from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from crispseg.bundle_masks import SegRefinerInfo
from crispseg.runtime.mask_resize import Box, normalised, paste_bilinear, resize_bilinear
from crispseg.runtime.segrefiner_sampling import Draw, Network, sample


class Instance(NamedTuple):
    """An object: ``mask`` bool [H, W]; ``probability`` float32 [h, w] in ``box``; None when left alone."""

    number: int
    mask: np.ndarray
    box: Optional[Box] = None
    probability: Optional[np.ndarray] = None


def object_box(mask: np.ndarray, pad: int) -> Optional[Box]:
    """The tight box of bool [H, W], grown by ``pad`` px and clipped; None when the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    height, width = mask.shape
    return (
        max(int(columns[0]) - pad, 0),
        max(int(rows[0]) - pad, 0),
        min(int(columns[-1]) + 1 + pad, width),
        min(int(rows[-1]) + 1 + pad, height),
    )


def cut(photo: np.ndarray, mask: np.ndarray, box: Box, info: SegRefinerInfo) -> Tuple[np.ndarray, np.ndarray]:
    """Image float32 [3, S, S] and mask bool [1, S, S] of one object.

    ``photo``: uint8 [H, W, 3]; ``mask``: bool [H, W].
    """
    x0, y0, x1, y1 = box
    size = info.size
    image = resize_bilinear(normalised(photo[y0:y1, x0:x1], info.mean, info.std), size, size)
    small = resize_bilinear(mask[y0:y1, x0:x1, None].astype(np.float32), size, size)
    return image.transpose(2, 0, 1), (small >= 0.5).transpose(2, 0, 1)


def refine_objects(
    network: Network,
    photo: np.ndarray,
    masks: Sequence[np.ndarray],
    info: SegRefinerInfo,
    *,
    steps: Sequence[int],
    draw: Draw,
    batch: int,
) -> Iterator[Instance]:
    """Refine the objects of a picture; yields every object once, in batches, in order of size class and index.

    Args:
        network: see ``sample``.
        photo: uint8 [H, W, 3] RGB.
        masks: bool [H, W] each; an item is asked for when it is needed, so it may be decoded on the way.
        info: of the bundle.
        steps: time steps, see ``sample``.
        draw: see ``seeded_draw``; the object's number is its index in ``masks``.
        batch: most objects in one call.

    Objects smaller than ``info.min_area`` px, and empty ones, come back as they are.
    """
    waiting: List[Tuple[int, Box, np.ndarray, np.ndarray]] = []
    for index in range(len(masks)):
        mask = masks[index]
        box = object_box(mask, info.pad) if int(mask.sum()) >= max(info.min_area, 1) else None
        if box is None:
            yield Instance(index, mask)
            continue
        waiting.append((index, box, *cut(photo, mask, box, info)))
        if len(waiting) == batch:
            yield from _refine(network, waiting, info, steps, draw, mask.shape)
            waiting = []
    if waiting:
        yield from _refine(network, waiting, info, steps, draw, photo.shape[:2])


def _refine(
    network: Network,
    group: List[Tuple[int, Box, np.ndarray, np.ndarray]],
    info: SegRefinerInfo,
    steps: Sequence[int],
    draw: Draw,
    shape: Sequence[int],
) -> Iterator[Instance]:
    images, coarse = (np.stack([item[part] for item in group]) for part in (2, 3))
    made = sample(network, images, coarse, steps, info.fine_left, draw, [item[0] for item in group])
    for (index, box, _, _), patch in zip(group, made.probability[:, 0]):
        # Outside the box the sampled probability stays below one half, so only the box is pasted.
        probability = paste_bilinear(patch, box)
        mask = np.zeros(tuple(shape), bool)
        mask[box[1] : box[3], box[0] : box[2]] = probability >= 0.5
        yield Instance(index, mask, box, probability)
