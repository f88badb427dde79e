"""Accuracy of masks against exact ones, as papers on high-resolution refinement measure it: IoU, mBA, boundary IoU.

mBA (mean boundary accuracy, Cheng et al., CascadePSP, CVPR 2020): accuracy inside bands of five widths around the
outline of the exact mask. Here masks are compared as they are given; a mask that is empty is scored as an empty mask,
and one whose exact mask has no outline has no mBA (the published script divides by zero there).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Union

import numpy as np

from crispseg.environment import environment
from crispseg.errors import InputError
from crispseg.files import hash_read
from crispseg.report import new_report
from crispseg.runtime.accuracy import BOUNDARY_RATIO, Tally
from crispseg.runtime.disk import gradient
from crispseg.runtime.mask_images import FOREGROUND, files_by_key, read_mask

ROLES = {"images": ("im", "image"), "masks": ("seg", "mask"), "gt": ("gt",)}
BANDS = 5

DEFINITIONS = {
    "coarse": "the masks that were to be refined",
    "refined": "the masks given with --refined",
    "iou": "intersection over union of the foreground, percent; in totals: intersections summed over all pictures / "
    "unions summed over all pictures, as CascadePSP, CRM and SegRefiner report it",
    "mean_iou": "mean over the pictures of each picture's IoU, percent; pictures where both masks are empty are left "
    "out",
    "mba": "mean boundary accuracy (CascadePSP, CVPR 2020), percent: share of right pixels inside a band around the "
    "outline of the exact mask (dilation minus erosion by a disk), mean over five radii 1 + int(((height + width) / "
    "300 - 1) / 5 * i), i = 0..4, in totals then over the pictures; pictures without an outline are left out",
    "boundary_iou": "boundary IoU of the foreground (Cheng et al., CVPR 2021), percent, sums over all pictures: the "
    "boundary of a mask is the mask minus the mask eroded d times by a 3x3 square with zeros outside the picture; d = "
    "max(1, round(boundary_ratio * diagonal)) px",
    "boundary_ratio": "distance d of the boundary IoU as a share of the picture's diagonal (0.02 in the paper)",
    "threshold": "lowest grey level that is foreground. 128 (one half; SegRefiner's scripts) by default; CRM's script "
    "takes 129",
    "without_outline": "pictures whose exact mask is empty or full: they have no mBA",
}


class Item(NamedTuple):
    """Files of one picture; ``refined`` may be None."""

    name: str
    image: Path
    coarse: Path
    refined: Optional[Path]
    truth: Path


class Score(NamedTuple):
    """One mask against the exact one; shares in 0..1, None where undefined."""

    intersection: int
    union: int
    boundary_intersection: int
    boundary_union: int
    mba: Optional[float]

    @property
    def iou(self) -> Optional[float]:
        """None when both masks are empty."""
        return self.intersection / self.union if self.union else None


def band_radii(height: int, width: int) -> List[int]:
    """Radii of the five bands, px; they grow with the picture."""
    step = ((height + width) / 300 - 1) / BANDS
    return [1 + int(step * i) for i in range(BANDS)]  # int truncates towards zero, also below it


def boundary_accuracy(mask: np.ndarray, truth: np.ndarray) -> Optional[float]:
    """Mean boundary accuracy of one picture, 0..1; both bool [H,W]. None when the exact mask has no outline."""
    right = mask == truth
    scores: Dict[int, float] = {}
    radii = band_radii(*truth.shape)
    for radius in sorted(set(radii)):
        band = gradient(truth, radius)
        count = int(np.count_nonzero(band))
        if not count:
            return None
        scores[radius] = np.count_nonzero(right & band) / count
    return float(sum(scores[radius] for radius in radii) / BANDS)


def score(mask: np.ndarray, truth: np.ndarray, boundary_ratio: float = BOUNDARY_RATIO) -> Score:
    """Compare two masks, bool [H,W]."""
    tally = Tally(2, boundary_ratio=boundary_ratio)
    tally.add(mask.astype(np.uint8), truth.astype(np.uint8))
    union = int(tally.confusion.sum() - tally.confusion[0, 0])
    shared = int(tally.shared[1])
    edges = int(tally.label_edge[1] + tally.predicted_edge[1]) - shared
    return Score(int(tally.confusion[1, 1]), union, shared, edges, boundary_accuracy(mask, truth))


def total(scores: List[Score]) -> Dict[str, Optional[float]]:
    """Percentages over all pictures."""
    ious = [s.iou for s in scores if s.iou is not None]
    mbas = [s.mba for s in scores if s.mba is not None]
    return {
        "iou": _percent(sum(s.intersection for s in scores), sum(s.union for s in scores)),
        "mean_iou": _percent(float(np.sum(ious)), len(ious)),
        "mba": _percent(float(np.sum(mbas)), len(mbas)),
        "boundary_iou": _percent(sum(s.boundary_intersection for s in scores), sum(s.boundary_union for s in scores)),
    }


def find_items(images: Any, masks: Any, truth: Any, refined: Any = None) -> List[Item]:
    """Files or folders; in folders by stem, without _im, _seg, _mask, _gt; one folder may hold several sorts.

    Raises:
        InputError: a place is missing or empty, files and folders are mixed, or a picture lacks a mask.
    """
    places = {"images": Path(str(images)), "masks": Path(str(masks)), "gt": Path(str(truth))}
    if refined is not None:
        places["refined"] = Path(str(refined))
    for what, path in places.items():
        if not path.exists():
            raise InputError("%s %s: expected a file or folder, found none" % (what, path))
    folders = [path.is_dir() for path in places.values()]
    if not any(folders):
        return [Item(places["images"].stem, places["images"], places["masks"], places.get("refined"), places["gt"])]
    if not all(folders):
        raise InputError(
            "%s: expected files or folders, found both; give one sort" % ", ".join(map(str, places.values()))
        )
    found = {}
    for what, path in places.items():
        same = [other for other, place in places.items() if other != what and place.resolve() == path.resolve()]
        skip = [ending for other in same for ending in ROLES.get(other, ())]
        found[what] = files_by_key(path, what.rstrip("s"), skip)
    for what in places:
        missing = [path.name for key, path in found["images"].items() if key not in found[what]]
        if missing:
            more = " and %d more" % (len(missing) - 3) if missing[3:] else ""
            raise InputError(
                "%s %s: expected a mask of the same stem for every image, found none for %s%s; add them or take the "
                "images out" % (what, places[what], ", ".join(missing[:3]), more)
            )
    return [
        Item(key, path, found["masks"][key], found["refined"][key] if refined is not None else None, found["gt"][key])
        for key, path in found["images"].items()
    ]


def evaluate_masks(
    images: Union[str, Path],
    masks: Union[str, Path],
    truth: Union[str, Path],
    *,
    refined: Union[str, Path, None] = None,
    threshold: int = FOREGROUND,
    boundary_ratio: float = BOUNDARY_RATIO,
    limit: Optional[int] = None,
    picture: Optional[Callable[[Item, Dict[str, np.ndarray]], None]] = None,
    progress: Optional[Callable[[int, int], None]] = None,
) -> Dict[str, Any]:
    """Score coarse masks, and refined ones when given, against exact ones.

    Args:
        images: folder of photos, or one; only their names matter here.
        masks: coarse masks.
        truth: exact masks.
        refined: refined masks, such as the folder ``masks`` that ``crispseg refine`` writes.
        threshold: lowest grey level that is foreground, 1 to 255.
        boundary_ratio: share of the diagonal that counts as boundary.
        limit: use only the first pictures in name order.
        picture: called with each item and its masks bool [H,W] by name.
        progress: called with (pictures done, pictures in all).

    Returns:
        A report of kind "eval-masks": ``coarse``, ``refined`` (None without) and ``pictures``; percent.

    Raises:
        InputError: files do not fit together or cannot be read.
    """
    if not 1 <= threshold <= 255:
        raise InputError("--threshold %s: expected a grey level from 1 to 255" % threshold)
    items = find_items(images, masks, truth, refined)[: limit or None]
    parts = ("coarse", "refined") if refined is not None else ("coarse",)
    scores: Dict[str, List[Score]] = {part: [] for part in parts}
    rows: List[Dict[str, Any]] = []
    for done, item in enumerate(items):
        if progress:
            progress(done, len(items))
        exact = read_mask(item.truth) >= threshold
        row: Dict[str, Any] = {"name": item.name, "size": "%dx%d" % exact.shape[::-1]}
        seen = {"truth": exact}
        for part in parts:
            path = getattr(item, part)
            mask = read_mask(path) >= threshold
            if mask.shape != exact.shape:
                raise InputError(
                    "%s: expected the size of %s, %dx%d, found %dx%d; give masks of one size"
                    % (path, item.truth.name, *exact.shape[::-1], *mask.shape[::-1])
                )
            seen[part] = mask
            found = score(mask, exact, boundary_ratio)
            scores[part].append(found)
            row["%s_iou" % part] = _percent(found.intersection, found.union)
            row["%s_mba" % part] = _percent(found.mba, 1)
        rows.append(row)
        if picture:
            picture(item, seen)
    if progress:
        progress(len(items), len(items))
    report = new_report(
        "eval-masks",
        coarse=total(scores["coarse"]),
        refined=total(scores["refined"]) if refined is not None else None,
        pictures=rows,
        count=len(items),
        without_outline=sum(s.mba is None for s in scores["coarse"]),
        threshold=threshold,
        boundary_ratio=boundary_ratio,
        input={
            "images": str(images),
            "masks": str(masks),
            "gt": str(truth),
            "refined": refined and str(refined),
            "masks_sha256": hash_read(item.coarse for item in items),
            "gt_sha256": hash_read(item.truth for item in items),
            **({} if refined is None else {"refined_sha256": hash_read(i.refined for i in items if i.refined)}),
        },
        environment=environment(),
    )
    hashes = {term: text for term, text in report["definitions"].items() if term.endswith("_sha256")}
    report["definitions"] = {**DEFINITIONS, **hashes}
    return report


def _percent(part: Optional[float], whole: float) -> Optional[float]:
    return round(100 * float(part) / whole, 4) if whole and part is not None else None
