"""``--budget-ms``: the most refined pixels a frame may have so that its latency stays within a budget.

A frame costs a fixed part (preprocessing, base, selection) and a part for every refined pixel. Both are measured: the
pipeline runs at a few capacities, a line is fitted, and the capacity is where the line, moved up by what the slowest
frames lay above it, meets the budget. A frame with more uncertain pixels keeps its most uncertain ones; how many were
left out is counted. The promise is about the frame's content: what other programs do to the machine is not in it.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from crispseg.errors import InputError
from crispseg.runtime.left_out import LeftOut

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Capacities that are measured, as shares of the most uncertain pixels of a frame."""
REPEATS = 5
_SOURCE_FRAMES = 4
_SHARE = 0.01  # of the pixels: below, a source's frames say too little
MIN_PIXELS = 64
"""Frames with fewer uncertain pixels say nothing about the time that one takes."""


@dataclass(frozen=True)
class Choice:
    """Latency is taken as ``fixed_ms + ms_per_kpixel * pixels / 1000 + margin_ms``; ``capacity``: the choice.

    ``points``: (refined pixels, ms) of every measured run. ``limit``: the bundle's capacity.
    """

    budget_ms: float
    capacity: int
    limit: int
    fixed_ms: float
    ms_per_kpixel: float
    margin_ms: float
    points: Tuple[Tuple[int, float], ...]


def choose_capacity(points: Sequence[Tuple[int, float]], budget_ms: float, limit: int) -> Choice:
    """Fit the line and take the largest capacity, 1 to ``limit``, that keeps the budget.

    Args:
        points: (refined pixels, ms), at least two different numbers of pixels.
        budget_ms: most time of a frame, ms.
        limit: the bundle's capacity.

    Raises:
        InputError: the fixed part alone is above the budget.
    """
    pixels = np.array([point[0] for point in points], np.float64)
    ms = np.array([point[1] for point in points], np.float64)
    # Medians first: one run that something else held up must not tilt the line.
    sizes = np.unique(pixels)
    middle = np.array([np.median(ms[pixels == size]) for size in sizes])
    slope, spread = 0.0, sizes - sizes.mean()
    if len(sizes) > 1:
        slope = max(0.0, float(spread @ (middle - middle.mean()) / (spread @ spread)))
    fixed = float(np.mean(middle - slope * sizes))
    # A hiccup of the machine is not the frame's fault: of the runs only nine in ten must lie below the raised line.
    margin = max(0.0, float(np.percentile(ms - fixed - slope * pixels, 90)))
    room = budget_ms - fixed - margin
    if room < slope:
        raise InputError(
            "--budget-ms %g: a frame takes %.3g ms before any pixel is refined (and varies by %.2g ms); allow more "
            "than %.3g ms, use more threads, or a smaller base" % (budget_ms, fixed, margin, fixed + margin + slope)
        )
    capacity = limit if slope * limit <= room else int(min(limit, math.floor(room / slope)))
    kept = tuple((int(n), round(float(t), 4)) for n, t in points)
    return Choice(budget_ms, max(1, capacity), limit, round(fixed, 4), 1000 * slope, round(margin, 4), kept)


def require_adjustable(budget_ms: Optional[float], refiner_engine: bool) -> None:
    """Raise InputError for a budget with a refiner whose capacity cannot be changed. Asked before anything is open."""
    if budget_ms is not None and refiner_engine:
        from crispseg.engines.tensorrt.refiner import fixed_capacity

        raise InputError(fixed_capacity("--budget-ms %g" % budget_ms))


def calibrate(pipeline: Any, frames: Sequence[np.ndarray], budget_ms: float, repeats: int = REPEATS) -> Choice:
    """Measure ``pipeline`` on ``frames``, set its capacity to the choice, and return it.

    Raises:
        InputError: the budget is not positive, cannot be kept, there is no refiner, or no frame has uncertain pixels.
    """
    if not budget_ms > 0 or not math.isfinite(budget_ms):
        raise InputError("--budget-ms %g: expected a positive number of milliseconds" % budget_ms)
    limit = pipeline.capacity
    if not limit:
        raise InputError(
            "--budget-ms: expected a bundle with a refiner, and its refiner in use; this one only has a base"
        )
    busiest, most = 0, -1
    for index, frame in enumerate(frames):
        result = pipeline.run(frame)
        if result.count > most:
            busiest, most = index, result.count
    if most < MIN_PIXELS:
        raise InputError(
            "--budget-ms: expected frames with uncertain pixels to measure, found at most %d in %d frames; measure "
            "others with crispseg latency --input" % (max(most, 0), len(frames))
        )
    points: List[Tuple[int, float]] = []
    try:
        for share in SHARES:
            pipeline.set_capacity(max(1, int(share * most)))
            pipeline.run(frames[busiest])  # buffers and graphs for this capacity
            for _ in range(repeats):
                start = time.perf_counter()
                result = pipeline.run(frames[busiest])
                points.append((result.count, 1e3 * (time.perf_counter() - start)))
        choice = choose_capacity(points, budget_ms, limit)
    except BaseException:
        pipeline.set_capacity(limit)
        raise
    pipeline.set_capacity(choice.capacity)
    return choice


def calibrate_on(pipeline: Any, source: Any, bundle: Any, budget_ms: float) -> Choice:
    """:func:`calibrate` for a run: on the first frames of ``source``, which is opened a second time.

    Rendered street scenes take their place for a live source, and for frames without uncertain pixels.
    """
    from crispseg.runtime.latency import load_frames

    if source.kind != "live":
        frames = load_frames(source.name, bundle.height, bundle.width, _SOURCE_FRAMES)[0]
        if max(pipeline.run(frame).found for frame in frames) >= _SHARE * bundle.height * bundle.width:
            return calibrate(pipeline, frames, budget_ms)
    return calibrate(pipeline, load_frames(None, bundle.height, bundle.width, _SOURCE_FRAMES)[0], budget_ms)


def summary(choice: Choice, left: LeftOut, over_budget: int, worst_ms: Optional[float]) -> Dict[str, Any]:
    """What the report says: the choice, the pixels left out, the frames above the budget and the slowest one."""
    facts = left.facts()
    return {
        **asdict(choice),
        "left_out_pixels": facts["left_out_pixels"],
        "frames_cut": facts["overflow_frames"],
        "frames_over_budget": over_budget,
        "worst_ms": None if worst_ms is None else round(worst_ms, 4),
    }
