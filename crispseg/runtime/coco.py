"""COCO's instance masks: run lengths, column by column, as lists or in COCO's own text form.

Written from the format's description so that no compiled package is needed on the device. Polygons are not read:
results files hold none.
"""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np

from crispseg.errors import InputError
from crispseg.runtime.images import MAX_PIXELS, MAX_SIDE


def decode(segmentation: Any, where: str) -> np.ndarray:
    """Bool [H, W] of ``{"size": [H, W], "counts": text or list}``. Raises InputError that starts with ``where``."""
    if isinstance(segmentation, list):
        raise InputError("%s: expected run lengths, found polygons; convert them (pycocotools: annToRLE)" % where)
    if not isinstance(segmentation, dict) or set(segmentation) != {"size", "counts"}:
        raise InputError("%s: expected a segmentation with size and counts, found something else" % where)
    size, counts = segmentation["size"], segmentation["counts"]
    ok = isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= MAX_SIDE for n in size)
    if not ok or size[0] * size[1] > MAX_PIXELS:
        raise InputError("%s: size: expected [height, width], at most %d px a side" % (where, MAX_SIDE))
    if isinstance(counts, str):
        counts = _numbers(counts, where)
    if not isinstance(counts, list) or any(type(n) is not int or n < 0 for n in counts):
        raise InputError("%s: counts: expected a text or a list of numbers, found something else" % where)
    runs = np.array(counts, np.int64) if max(counts, default=0) <= MAX_PIXELS else np.array([MAX_PIXELS + 1])
    if int(runs.sum()) != size[0] * size[1]:
        raise InputError("%s: counts: expected a sum of %d pixels, found another" % (where, size[0] * size[1]))
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(size[1], size[0]).T)


def encode(mask: np.ndarray) -> Dict[str, Any]:
    """``{"size": [H, W], "counts": text}`` of bool [H, W]."""
    flat = np.asarray(mask, bool).T.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    runs = np.diff(bounds).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)  # the first run is one of zeros
    return {"size": [int(n) for n in mask.shape], "counts": _text(runs)}


def _text(runs: List[int]) -> str:
    """COCO's text: from the fourth run on the difference to the one two before, 5 bits a character, 48 added."""
    out = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            out.append(chr(48 + (bits if last else bits | 32)))
            if last:
                break
    return "".join(out)


def _numbers(text: str, where: str) -> List[int]:
    runs: List[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 35:
            raise InputError("%s: counts: expected COCO's run lengths, found other characters" % where)
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise InputError("%s: counts: expected whole run lengths, found a truncated text" % where)
    return runs
