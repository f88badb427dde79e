"""Accuracy of a pipeline on labelled frames: mIoU, IoU of each class and boundary IoU, summed frame by frame."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from crispseg.engines.spec import usual_precision
from crispseg.errors import BundleError, InputError
from crispseg.files import hash_read
from crispseg.report import new_report
from crispseg.runtime.images import IMAGE_SUFFIXES, natural_key, open_picture, read_image
from crispseg.runtime.left_out import LeftOut
from crispseg.runtime.not_finite import NotFinite

BOUNDARY_RATIO = 0.02
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
# The Cityscapes names of an image and of its label map differ after the frame's own stem.
_IMAGE_ENDING, _LABEL_ENDING = "_leftImg8bit", "_gtFine_labelTrainIds"


class Tally:
    """Counts over a data set: the confusion matrix and, per class, the boundary pixels of labels and predictions.

    A class that occurs neither in the labels nor in a prediction has no IoU and is left out of the means. Pixels with
    the ignore label count nowhere. The boundary IoU follows Cheng et al., "Boundary IoU", CVPR 2021, carried over from
    single masks to label maps; ``crispseg.report.DEFINITIONS["boundary_iou"]`` states it in full.
    """

    def __init__(self, num_classes: int, ignore: int = 255, boundary_ratio: float = BOUNDARY_RATIO) -> None:
        """Starts empty.

        Raises:
            InputError: the ratio is not above 0 and at most 1.
        """
        if not 0 < boundary_ratio <= 1:
            raise InputError(f"boundary ratio {boundary_ratio}: expected more than 0 and at most 1 (0.02 in the paper)")
        self.num_classes, self.ignore, self.boundary_ratio = num_classes, ignore, boundary_ratio
        self.confusion = np.zeros((num_classes, num_classes), np.int64)  # [label, prediction]
        self.shared = np.zeros(num_classes, np.int64)  # in the boundary of both masks
        self.label_edge = np.zeros(num_classes, np.int64)
        self.predicted_edge = np.zeros(num_classes, np.int64)
        self.pixels = 0

    def add(self, predicted: np.ndarray, label: np.ndarray) -> None:
        """Adds one frame; both uint8 [H,W]. Predictions are below num_classes, labels below it or ignore.

        Raises:
            ValueError: maps of different sizes.
        """
        if predicted.shape != label.shape:
            raise ValueError(f"prediction {predicted.shape} and label map {label.shape} differ in size")
        count = self.num_classes
        valid = label != self.ignore
        self.pixels += label.size
        pairs = label[valid].astype(np.int64) * count + predicted[valid]
        self.confusion += np.bincount(pairs, minlength=count * count).reshape(count, count)
        distance = boundary_distance(label.shape, self.boundary_ratio)
        # The unlabelled area cuts both masks alike: otherwise even a perfect prediction would stay below 100.
        masked = np.where(valid, predicted, np.uint8(self.ignore))
        label_edge = boundary(label, distance) & valid
        predicted_edge = boundary(masked, distance) & valid
        self.label_edge += np.bincount(label[label_edge], minlength=count)
        self.predicted_edge += np.bincount(predicted[predicted_edge], minlength=count)
        self.shared += np.bincount(label[label_edge & predicted_edge & (label == predicted)], minlength=count)

    def result(self, names: Sequence[str]) -> dict:
        """Percentages: miou, boundary_iou, pixel_accuracy, per_class and boundary_per_class (None: class absent)."""
        right = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - right
        edge_union = self.label_edge + self.predicted_edge - self.shared
        total = int(self.confusion.sum())
        return {
            "miou": _mean_percent(right, union),
            "boundary_iou": _mean_percent(self.shared, edge_union),
            "pixel_accuracy": round(100 * int(right.sum()) / total, 4) if total else None,
            "per_class": _percents(names, right, union),
            "boundary_per_class": _percents(names, self.shared, edge_union),
        }


def boundary_distance(shape: Sequence[int], ratio: float = BOUNDARY_RATIO) -> int:
    """Width d of a boundary, px: ratio x image diagonal, rounded, at least 1. 12 px at 480x360, 46 px at 2048x1024."""
    return max(1, int(round(ratio * math.hypot(shape[0], shape[1]))))


def boundary(labels: np.ndarray, distance: int) -> np.ndarray:
    """Pixels that iterated erosion would take from their class's mask: bool [H,W].

    Eroding each class's mask ``distance`` times by a 3x3 square, with zeros outside the image, keeps a pixel exactly
    when the square of side 2 * distance + 1 around it lies in the image and holds one label. One running minimum and
    maximum therefore serve all classes at once.
    """
    result = np.ones(labels.shape, bool)
    height, width = labels.shape
    if height > 2 * distance and width > 2 * distance:
        low = _running(_running(labels, distance, np.minimum, 0), distance, np.minimum, 1)
        high = _running(_running(labels, distance, np.maximum, 0), distance, np.maximum, 1)
        result[distance : height - distance, distance : width - distance] = low != high
    return result


def evaluate(
    bundle: Any,
    images: object,
    labels: object,
    *,
    backend: str = "native",
    provider: str = "CPUExecutionProvider",
    baseline: bool = False,
    threads: int = 0,
    limit: int | None = None,
    boundary_ratio: float = BOUNDARY_RATIO,
    precision: str = "",
    device: int = 0,
    refiner_engine: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Measures the base alone, the refined result and, on request, the base at full resolution on labelled frames.

    Args:
        bundle: a Bundle or the path of one.
        images: folder of images, or one image.
        labels: folder of 8-bit label maps with the stems of the images (Cityscapes endings are understood), or one
            label map. Ids are below the number of classes; the bundle's ignore label and the id just behind the
            classes (CamVid's "unlabelled") are ignored.
        backend: "native", "onnxruntime", "cuda" or "tensorrt", see :func:`open_pipeline`.
        provider: ONNX Runtime provider of the base.
        baseline: also run ``baseline.onnx``.
        threads: 0 = all usable CPUs.
        limit: use only the first ``limit`` frames in name order.
        boundary_ratio: share of the image diagonal that counts as boundary.
        precision: "" = the backend's usual one.
        device: number of the GPU.
        refiner_engine: backend tensorrt: the refiner as an engine too.
        progress: called with (frames done, frames in all).

    Returns:
        A report of kind "eval"; accuracies and density in percent, "refined" and "baseline" None when not measured.

    Raises:
        InputError: images and labels do not fit together, or not to the bundle's classes.
        BundleError: the bundle cannot be used, or has no baseline.
    """
    from crispseg import bundle_calibration
    from crispseg.bundle import bundle_facts, load_bundle
    from crispseg.environment import environment
    from crispseg.runtime.pipeline import open_pipeline

    bundle = bundle if hasattr(bundle, "classes") else load_bundle(bundle)
    if baseline and bundle.baseline is None:
        raise BundleError(
            f"{bundle.path}: expected a baseline.onnx for --baseline, found none; "
            "export the bundle again with --baseline"
        )
    pairs = pair_files(images, labels)[: limit or None]
    names = [info.name for info in bundle.classes]
    common: dict = {
        "backend": backend,
        "provider": provider,
        "threads": threads,
        "precision": precision,
        "device": device,
    }
    refine = bundle.refiner is not None or refiner_engine
    wanted = ["base", *(["refined"] if refine else []), *(["baseline"] if baseline else [])]
    tallies = {part: Tally(len(names), bundle.ignore_label, boundary_ratio) for part in wanted}
    densities, left = [], LeftOut()
    finite = {part: NotFinite() for part in wanted}
    pipelines: dict = {}
    try:
        # A pipeline's time goes into its base network: one run of it serves both columns.
        if refine:
            pipelines["refined"] = open_pipeline(bundle, refiner_engine=refiner_engine, **common)
        else:
            pipelines["base"] = open_pipeline(bundle, refine=False, **common)
        if baseline:
            pipelines["baseline"] = open_pipeline(bundle, network="baseline", **common)
        for done, (image_file, label_file) in enumerate(pairs):
            if progress:
                progress(done, len(pairs))
            image, label = read_pair(image_file, label_file, len(names), bundle.ignore_label)
            for part, pipeline in pipelines.items():
                result = pipeline.run(image, want=("labels", "base") if part == "refined" else ("labels",))
                tallies[part].add(result.labels, label)
                finite[part].add(result.not_finite)
                if part == "refined":
                    tallies["base"].add(result.base, label)
                    densities.append(100 * float(result.density))
                    left.add(result.count, result.found)
        main = pipelines["refined" if refine else "base"]
        engines = main.describe() if hasattr(main, "describe") else None
    finally:
        for pipeline in pipelines.values():
            close = getattr(pipeline, "close", None)
            if close:
                close()
    if progress:
        progress(len(pairs), len(pairs))
    parts: dict = {part: tally.result(names) for part, tally in tallies.items()}
    base = tallies["base"]
    random = [net for net in ("base", "refiner") if getattr(getattr(bundle, net), "random_weights", False)]
    return new_report(
        "eval",
        base=parts["base"],
        refined=parts.get("refined"),
        baseline=parts.get("baseline"),
        density=round(float(np.mean(densities)), 4) if densities else None,
        frames=len(pairs),
        **left.facts(),
        **finite["refined" if refine else "base"].facts(),
        ignored_pixels=round(100 * (1 - int(base.confusion.sum()) / max(1, base.pixels)), 4),
        boundary_ratio=boundary_ratio,
        base_upsample=bundle.base.upsample,
        input={
            "images": str(images),
            "labels": str(labels),
            "first": pairs[0][0].name,
            "last": pairs[-1][0].name,
            "images_sha256": hash_read(image for image, _ in pairs),
            "labels_sha256": hash_read(label for _, label in pairs),
        },
        bundle=bundle_facts(bundle),
        precision=precision or usual_precision(backend),
        pipeline=engines,
        calibration=bundle_calibration.facts(bundle, precision),
        environment=environment(threads, backend=backend, provider=provider),
        warnings=[
            *(f"the {net} has random weights: these accuracies say nothing" for net in random),
            *left.warnings(),
            *(
                text
                for part, tally in finite.items()
                for text in tally.warnings(
                    precision or usual_precision(backend), "baseline" if part == "baseline" else "base"
                )
            ),
            *bundle_calibration.warnings(bundle, precision),
        ],
    )


def pair_files(images: object, labels: object) -> list:
    """(image file, label file) in name order, paired by path below the folder and stem.

    Raises:
        InputError: nothing there, or an image has no label map (names the first few).
    """
    image_root, label_root = Path(str(images)), Path(str(labels))
    for root, what in ((image_root, "images"), (label_root, "label maps")):
        if not root.exists():
            raise InputError(f"{root}: expected a folder of {what}, found nothing there")
    if image_root.is_file() and label_root.is_file():
        return [(image_root, label_root)]
    for root, what in ((image_root, "images"), (label_root, "label maps")):
        if not root.is_dir():
            raise InputError(f"{root}: expected a folder of {what} (or a file for both), found a file")
    image_files = _files(image_root, IMAGE_SUFFIXES)
    if not image_files:
        raise InputError(f"{image_root}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    by_stem = {_key(path, label_root, _LABEL_ENDING): path for path in reversed(_files(label_root, LABEL_SUFFIXES))}
    found = [(path, by_stem.get(_key(path, image_root, _IMAGE_ENDING))) for path in image_files]
    missing = [path for path, label in found if label is None]
    if missing:
        listed = ", ".join(path.name for path in missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise InputError(
            f"{label_root}: expected a label map of the same stem for each of {len(image_files)} images, "
            f"found none for {len(missing)} ({listed}); add the labels or remove the images"
        )
    return found


def read_pair(image_file: Path, label_file: Path, num_classes: int, ignore: int = 255) -> tuple:
    """Reads and checks (image uint8 [H,W,3] RGB, labels uint8 [H,W] with every ignored id = ``ignore``).

    Raises:
        InputError: unreadable, of different sizes, not ids in one channel, or ids beyond the classes.
    """
    image, label = read_image(image_file), _read_ids(label_file)
    if label.ndim != 2 or label.dtype.kind not in "ui":
        raise InputError(
            f"{label_file}: expected class ids in one channel (8-bit grey or palette PNG), found an "
            f"image of shape {label.shape}, {label.dtype}; convert colours to ids"
        )
    if label.shape != image.shape[:2]:
        raise InputError(
            f"{label_file}: expected the size of {image_file.name}, {image.shape[1]}x{image.shape[0]}, "
            f"found {label.shape[1]}x{label.shape[0]}; resize the labels with nearest neighbour"
        )
    beyond = label[((label > num_classes) | (label < 0)) & (label != ignore)]
    if beyond.size:
        raise InputError(
            f"{label_file}: expected ids 0 to {num_classes - 1} ({ignore} or {num_classes} = ignored), "
            f"found {int(beyond.max())} in {beyond.size} pixels; use the labels of this bundle's classes"
        )
    return image, np.where(label == num_classes, ignore, label).astype(np.uint8)


def _read_ids(path: Path) -> np.ndarray:
    """Pixels as stored: ids, or the indices of a palette."""
    with open_picture(path, "label map") as image:
        return np.asarray(image)


def _files(root: Path, suffixes: tuple) -> list:
    found = (path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(found, key=lambda path: natural_key(path.relative_to(root)))


def _key(path: Path, root: Path, ending: str) -> str:
    stem = path.stem[: -len(ending)] if path.stem.endswith(ending) else path.stem
    return str(path.relative_to(root).parent / stem)


def _running(values: np.ndarray, distance: int, function: Callable, axis: int) -> np.ndarray:
    """Minimum or maximum over windows of 2 * distance + 1 along an axis, whole windows only; by doubling."""
    values = np.swapaxes(values, 0, axis)
    window, size = 2 * distance + 1, 1
    while size * 2 <= window:
        values = function(values[:-size], values[size:])
        size *= 2
    rest = window - size
    if rest:
        values = function(values[:-rest], values[rest:])
    return np.swapaxes(values, 0, axis)


def _mean_percent(part: np.ndarray, whole: np.ndarray) -> float | None:
    there = whole > 0
    return round(100 * float(np.mean(part[there] / whole[there])), 4) if there.any() else None


def _percents(names: Sequence[str], part: np.ndarray, whole: np.ndarray) -> dict:
    return {name: round(100 * int(p) / int(w), 4) if w else None for name, p, w in zip(names, part, whole)}
