"""Measured data -> JSON, a table in the terminal, an HTML page. One schema for every command.

A report is a plain dict: ``schema``, ``kind``, the measured entries, ``environment``, and ``definitions``, which says
what each term in this very report means. Times are in ms, memory in MiB, accuracies and densities in percent.
Stage times stand under ``stages``: ``{"base": {"p50": .., "p90": .., "p99": .., "max": .., "mean": ..}, ...}``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any, List, Sequence, Tuple

import numpy as np

from crispseg.errors import InputError
from crispseg.files import partial_path

SCHEMA = 1

DEFINITIONS = {
    "p50": "median over the measured runs, linear interpolation between order statistics; so p90 and p99",
    "decode": "reading and decoding one frame, ms",
    "preprocess": "resizing or letterboxing the frame and normalising it for the base, ms",
    "base": "in stage times: the base network on the low-resolution frame, ms; "
    "in accuracies: its logits upsampled to full size as its authors evaluate (bilinear; the rule is base_upsample), "
    "then argmax",
    "refine": "all steps of the refiner together, ms",
    "select": "upsampling, softmax, entropy, argmax and choice of the active pixels, ms",
    "maps": "kernel maps of all levels, ms",
    "conv": "all sparse convolutions, ms",
    "ensemble": "joining the base's and the refiner's logits at the active pixels, ms",
    "scatter": "writing the refined labels into the label map, ms",
    "overlay": "blending class colours over the frame on the GPU, ms",
    "pack": "a frame's results on the GPU: maps brought to its size, all put where the download takes them, ms",
    "post": "bringing the label map to the size of the frame (on a GPU that is done: copying it), ms",
    "encode": "drawing, encoding and writing the outputs, ms",
    "total": "one frame from decoded pixels to label map, wall time on one pipeline with nothing overlapped, ms; where "
    "frames overlap (crispseg run on a GPU) staging + enqueue + host_latency + post of the frame",
    "cpu": "processor time of all threads of this process during one frame, ms (above the wall time when threads "
    "work in parallel, far below it when they wait)",
    "density": "active pixels (found uncertain and classified again) / all pixels, mean over the frames, percent",
    "density_range": "density of the frame with the fewest and of the one with the most active pixels, percent",
    "throughput_fps": "measured frames / sum of their total times",
    "peak_memory_mib": "largest resident set of the process up to the end of the measurement, MiB",
    "coefficient_of_variation": "standard deviation / mean of the total times, each divided by the median of its own "
    "frame, percent",
    "speedup": "median time of the same base dense at full resolution (baseline) / median time of the pipeline; "
    "low and high are the 10th and 90th percentile of the ratio over neighbouring pairs of runs (ABAB)",
    "int8_speedup": "median time in float (float_precision) / median time in int8, of the base and of the whole frame; "
    "low and high as for speedup",
    "int8_macs_percent": "multiply-adds that are computed in int8 / all, percent, of each calibrated network",
    "baseline": "the same base network run densely at full resolution, without a refiner",
    "refined": "the label map after the refiner has classified the active pixels again",
    "miou": "mean intersection over union, percent: per class TP / (TP + FP + FN) summed over all frames, then the "
    "mean over the classes that occur in the labels or in the prediction; pixels with the ignore label count "
    "nowhere",
    "per_class": "intersection over union of each class over all frames, percent; null when the class occurs "
    "neither in the labels nor in the prediction",
    "boundary_iou": "boundary IoU (Cheng et al., Boundary IoU, CVPR 2021) carried over to label maps, percent: the "
    "boundary of a class mask is the mask minus the mask eroded d times by a 3x3 square, with all "
    "outside the image counted as another class; per class |G_d & P_d| / |G_d | P_d| with sums over "
    "all frames, then the mean over the classes with a non-empty union. d = max(1, round("
    "boundary_ratio * image diagonal)) px of each label map. Ignored pixels are taken out of the "
    "counts, and in the prediction's mask they take the label of no class",
    "boundary_ratio": "distance d of the boundary IoU as a share of the image diagonal (0.02 in the paper)",
    "boundary_per_class": "boundary IoU of each class over all frames, percent; null when its boundary is nowhere",
    "ignored_pixels": "pixels with an ignore label / all pixels, percent",
    **{
        f"{what}_sha256": f"SHA-256 of the names and contents of the {what} that were read, in order: of a line "
        "with SHA-256, two spaces and the name for each, as sha256sum writes it; calibrations record their images so"
        for what in ("files", "images", "labels", "masks", "photos", "gt", "refined")
    },
    "frames_sha256": "SHA-256 of the frames: of each its height and width as text (480x640 and a line feed) and its "
    "pixels, 8-bit RGB",
    "pixel_accuracy": "pixels classified right / pixels that are not ignored, percent",
    "staging": "copying the decoded frame into page-locked memory, ms",
    "budget": "the capacity that --budget-ms chose: latency is taken as fixed_ms + ms_per_kpixel * pixels / 1000 + "
    "margin_ms, from the measured points (refined pixels, ms); left_out_pixels: uncertain pixels of a frame that were "
    "not refined (found - count)",
    "enqueue": "host time to put one frame's work on the GPU's queue (copies, kernels or the graph launch), ms; it "
    "does not wait for the GPU. trtexec: Enqueue Time",
    "h2d": "copying one frame's inputs from page-locked host memory to the GPU, by CUDA events, ms. "
    "trtexec: H2D Latency",
    "gpu_compute": "from the first to the last kernel of one frame, by CUDA events, ms; without the copies. "
    "trtexec: GPU Compute Time",
    "d2h": "copying one frame's results (uint8 labels) from the GPU to page-locked host memory, by CUDA events, ms. "
    "trtexec: D2H Latency",
    "host_latency": "h2d + gpu_compute + d2h of the same frame, ms. trtexec: (Host) Latency",
    "total_host_walltime_s": "from the enqueue of the first measured frame (after the warm-up) to the end of the "
    "last, s. trtexec: Total Host Walltime",
    "total_gpu_compute_s": "sum of gpu_compute over the same frames, s; far below total_host_walltime_s: the GPU waits "
    "for the host. trtexec: Total GPU Compute Time",
    "throughput_qps": "measured frames / total_host_walltime_s, with the next frame enqueued before the last one "
    "has ended, as trtexec does. trtexec: Throughput",
    "gpu_state": "clocks (MHz), temperature (C), power (W; rails of a Jetson in mW) and power mode right before and "
    "right after the measurement; limited_by: what holds the clocks down at that moment",
    "frames": "number of frames measured",
    "dropped": "frames of a live source that came while the pipeline was busy and were not used",
    "count": "active pixels of a frame that were refined; where many were measured, their mean",
    "damaged_packets": "packets of a video that could not be decoded, and frames that its decoder calls corrupt",
    "finish_ms": "finishing the files after the last frame, ms",
    "warmup": "not measured: runs before the measurement and the seconds asked for; open_ms: loading the networks; "
    "first_run_ms: the first of these runs",
    "gate": "what the smaller numbers cost on the frames of the gate. With labels: IoU in percent before and after, "
    "drop in points, allowed: limit for mIoU, twice that for boundary IoU, four times for the class that loses most; "
    "part: the label map that was scored. Without: agreement, percent of the pixels with the class of float, of all "
    "frames and of the worst one; at most limit percent may differ",
    "layers_in_float": "convolutions and matrix products that stay in float",
    "macs_share": "multiply-adds that are computed in int8 / all",
    "calibration_s": "finding the ranges and writing the int8 networks, s; total_s: with the gate",
    "found": "pixels above the threshold of uncertainty",
    "left_out_pixels": "uncertain pixels of a frame that were not refined for want of capacity (found - count): mean "
    "over the frames, and the most of one",
    "not_finite_frames": "frames in which the base gave NaN or infinity: pixels of its logits with NaN or +inf in any "
    "class, or -inf in all. Labels there mean nothing, have confidence 0 and are not refined",
    "overflow_frames": "frames with more uncertain pixels than the capacity, of which only the most uncertain were "
    "refined",
}
# What a term means in one kind of report alone.
_IN = {
    "run": {
        "p50": "median over the frames, linear interpolation between order statistics; so p90 and p99. Of more than "
        "65536 frames: over every second, fourth, ... one; max and mean are of all",
        "throughput_fps": "frames written / seconds: decoding, networks and encoding at the same time",
        "seconds": "from the first frame read to the last frame written, s; loading and finish_ms not included",
    },
}
_LABELS = {
    "density": "density, %",
    "density_range": "density from, to, %",
    "coefficient_of_variation": "coefficient of variation, %",
    "ignored_pixels": "ignored pixels, %",
    "throughput_fps": "throughput, frames/s",
    "peak_memory_mib": "peak memory, MiB",
    "throughput_qps": "throughput with frames overlapped, frames/s",
    "speedup.ratio": "speed-up over the baseline",
    "speedup.low": "speed-up, 10th percentile",
    "speedup.high": "speed-up, 90th percentile",
}
_STAGE_TITLES = {
    "stages": "Stage times, ms",
    "float_stages": "The same in {}, ms",
    "baseline_stages": "Baseline (same base, full resolution), ms",
}
# There the same words mean other things.
_NOT_MEASURED = ("bases", "build", "doctor", "fit", "inspect", "layers", "scenes")
_TIGHT = 6  # columns: more stand close together
_WIDE = 8  # columns: more let their heads fold anywhere
_NUMBER = re.compile(r"-?[0-9.]*(e[-+][0-9]+)?\Z")
DETAILS = ("pipeline", "calibration", "gpu_state", "environment")
ACCURACY_PARTS = ("base", "refined", "baseline")


def summarise(values_ms: Sequence[float]) -> dict:
    """p50, p90, p99, max and mean of a list of times; all None when the list is empty."""
    values = np.asarray(list(values_ms), dtype=np.float64)
    if values.size == 0:
        return {"p50": None, "p90": None, "p99": None, "max": None, "mean": None}
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    result = {"p50": p50, "p90": p90, "p99": p99, "max": values.max(), "mean": values.mean()}
    return {key: round(float(value), 4) for key, value in result.items()}


def new_report(kind: str, **entries: object) -> dict:
    """A report of this kind: the schema version in front, the environment, the definitions of its terms at the end."""
    from crispseg.environment import environment

    report: dict = {"schema": SCHEMA, "kind": kind, **entries}
    if "environment" not in report:
        report["environment"] = environment()
    used = set() if kind in _NOT_MEASURED else _terms({**entries, "environment": None, "pipeline": None})  # names there
    terms = {**DEFINITIONS, **_IN.get(kind, {})}
    report["definitions"] = {term: text for term, text in terms.items() if term in used}
    return report


def to_json(report: object, indent: int | None = 2) -> str:
    """Strict JSON in ASCII, which every terminal and file name survives; NaN and infinities become null."""
    return json.dumps(_plain(report), indent=indent, ensure_ascii=True, allow_nan=False)


def write_json(path: object, report: object) -> None:
    """Write a report so that the file is either complete or absent.

    Raises:
        InputError: the file cannot be written (names it and says why).
    """
    write_text(path, to_json(report) + "\n")


def write_text(path: object, text: str) -> None:
    """Write text beside ``path`` and move it to its name. Raises InputError when that fails."""
    target = Path(str(path))
    partial = partial_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(str(partial), str(target))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{target}: cannot write the report ({reason}); choose a writable place with room") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def format_value(value: object) -> str:
    """A number as a person reads it: short, no exponent for usual sizes, "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if not math.isfinite(number):
            return "-"
        if 0 < abs(number) < 0.01:
            return f"{number:.2g}"
        return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.1f}" if abs(number) >= 100 else f"{number:.2f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {format_value(item)}" for key, item in value.items())
    return json.dumps(_plain(value), ensure_ascii=False)


def sections(report: dict) -> list:
    """The report as tables: list of (title, column names, rows of strings). The terminal and the page render these."""
    tables: List[Tuple[str, Sequence[str], List[List[str]]]] = []
    for name in ("stages", "float_stages", "baseline_stages"):
        if isinstance(report.get(name), dict) and report[name]:
            columns = ("p50", "p90", "p99", "max", "mean")
            rows = [[stage, *(format_value(times.get(c)) for c in columns)] for stage, times in report[name].items()]
            title = _STAGE_TITLES[name].format(report.get("float_precision"))
            tables.append((title, ("stage", *columns), rows))
    accuracies = {n: report[n] for n in ACCURACY_PARTS if isinstance(report.get(n), dict) and "miou" in report[n]}
    if accuracies:
        rows = [
            [label, *(format_value(part.get(key)) for part in accuracies.values())]
            for label, key in (("mIoU", "miou"), ("boundary IoU", "boundary_iou"), ("pixel accuracy", "pixel_accuracy"))
        ]
        tables.append(("Accuracy, percent", ("", *accuracies), rows))
        classes = list(next(iter(accuracies.values())).get("per_class") or {})
        rows = [
            [c, *(format_value((part.get("per_class") or {}).get(c)) for part in accuracies.values())] for c in classes
        ]
        tables.append(("IoU of each class, percent", ("class", *accuracies), rows))
    absent = [name for name in ACCURACY_PARTS if report.get(name) is None]
    shown = {
        "schema",
        "kind",
        "definitions",
        *_STAGE_TITLES,
        *DETAILS,
        *accuracies,
        *absent,
    }
    for name, items in report.items():
        if isinstance(items, (list, tuple)) and items and all(isinstance(item, dict) for item in items):
            columns = tuple(dict.fromkeys(key for item in items for key in item))
            rows = [[format_value(item.get(column)) for column in columns] for item in items]
            tables.append((name.replace("_", " ").capitalize(), columns, rows))
            shown.add(name)
    rows = [
        [_LABELS.get(name, name), format_value(value)]
        for name, value in _flat(report)
        if name.split(".")[0] not in shown
    ]
    if rows:
        tables.append(("Summary", ("", ""), rows))
    for name in DETAILS:
        if isinstance(report.get(name), dict):
            rows = [[key, format_value(value)] for key, value in _flat(report[name])]
            tables.append((name.replace("_", " ").capitalize(), ("", ""), rows))
    return tables


def render_table(report: dict, details: bool = False) -> Any:
    """The report as a rich renderable for the terminal; engines and environment on request."""
    from rich import box
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    parts: list = []
    for title, columns, rows in sections(report):
        if title.lower().replace(" ", "_") in DETAILS and not details:
            continue
        wide = len(columns) > _WIDE
        table = Table(show_header=any(columns), box=box.SIMPLE_HEAD, padding=(0, 0 if len(columns) > _TIGHT else 1))
        for position, column in enumerate(columns):
            justify: Any = "left" if position == 0 or not any(columns) else "right"
            cells = [row[position] for row in rows]
            head = column.replace("_", " ")
            # Where a terminal is too narrow, names fold; numbers do not, nor do the words of a head if there is room.
            words = [*(() if wide else head.split()), *(cells if wide and all(map(_NUMBER.match, cells)) else ())]
            least = max(map(len, words), default=0) or None
            table.add_column(escape(head), justify=justify, overflow="fold", min_width=least)
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        parts.extend((f"[bold]{escape(title)}[/bold]", table))
    parts.extend(f"[yellow]warning:[/yellow] {escape(str(text))}" for text in report.get("warnings", ()))
    return Group(*parts)


def render_html(report: dict) -> str:
    """The report as one HTML page without external resources; bars are inline SVG."""
    from crispseg.report_html import page

    return page(report)


def _terms(value: object) -> set:
    if isinstance(value, dict):
        found = {part for key in value for part in str(key).split(":")}  # "refine:conv" is a stage and its step
        for item in value.values():
            found |= _terms(item)
        return found
    if isinstance(value, (list, tuple)):
        return set().union(*(_terms(item) for item in value)) if value else set()
    return set()


def _flat(value: dict, prefix: str = "") -> list:
    rows: list = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            rows.extend(_flat(item, f"{prefix}{key}."))
        elif prefix or key != "warnings":
            rows.append((f"{prefix}{key}", item))
    return rows


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(float(value)) else None
    if value is None or isinstance(value, str):
        return value
    return str(value)
