"""``crispseg refine``: photos with masks, label maps or COCO results in, refined ones and a report out.

OUT/masks/NAME.png         0 and 255, at the photo's size
OUT/labels/NAME.png        class ids, for label maps
OUT/results.json           for COCO results
OUT/report.json            written last
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Union

import numpy as np

from crispseg.bundle_masks import MaskBundle, SegRefinerInfo, load_mask_bundle, mask_bundle_facts
from crispseg.environment import environment, peak_memory_mib
from crispseg.errors import InputError
from crispseg.files import hash_read
from crispseg.report import new_report, summarise, write_json
from crispseg.runtime.interrupt import Interrupt
from crispseg.runtime.mask_images import check_pairs, find_pairs, read_label_map, read_mask, read_photo, unused_masks
from crispseg.runtime.mask_refiner import RefineOptions, open_mask_refiner, refine_labels
from crispseg.runtime.sinks import make_folder, write_png

Progress = Callable[..., None]

DEFINITIONS = {
    "decode": "reading and decoding a photo and its mask, ms",
    "refine": "one mask (label maps: all classes; COCO: all objects of a photo) from pixels to pixels, ms",
    "network": "one call of the network (CRM: all calls of a mask), ms",
    "network_calls": "calls of the network; pictures: network inputs in all of them",
    "changed": "pixels whose value differs from the mask that was given / all pixels, mean over the masks, percent",
}


class Record:
    """What is measured during a run."""

    def __init__(self) -> None:
        self.stages: Dict[str, List[float]] = {"decode": [], "refine": [], "encode": []}
        self.changed: List[float] = []
        self.items: List[Dict[str, Any]] = []
        self.warnings: List[str] = []

    @contextlib.contextmanager
    def timed(self, stage: str):  # type: ignore[no-untyped-def]
        """Add the time of a block to a stage."""
        start = time.perf_counter()
        yield
        self.stages[stage].append((time.perf_counter() - start) * 1e3)


def refine(
    bundle: Union[MaskBundle, str, Path],
    photos: Union[str, Path],
    masks: Union[str, Path],
    out: Union[str, Path],
    options: Optional[RefineOptions] = None,
    *,
    labels: bool = False,
    background: Optional[int] = None,
    ignore_exif: bool = False,
    annotations: Optional[Path] = None,
    limit: Optional[int] = None,
    progress: Optional[Progress] = None,
) -> Dict[str, Any]:
    """Refine masks and write the results to the folder ``out``; returns the report.

    Args:
        bundle: directory of a mask-refiner bundle, or a loaded one.
        photos: a photo or a folder.
        masks: a grey mask, a folder of them with the photos' stems, or a COCO results file (.json, SegRefiner only).
        out: folder, created when missing.
        options: see ``RefineOptions``.
        labels: the masks are label maps of class ids.
        background: class id that is not refined and gets the pixels that no class claims; label maps only.
        ignore_exif: take the photo as stored.
        annotations: COCO annotation file with the names of the photos; else they are their ids.
        limit: stop after so many photos.
        progress: called with (photos done, photos, text); of the photo under way the share that is done counts.

    Ctrl-C finishes the photo under way and writes the report with ``interrupted`` true (COCO results: no file, they
    would not be complete). Raises InputError, BundleError, EnvironmentMismatch, UnsupportedOp.
    """
    options = options or RefineOptions()
    loaded = bundle if isinstance(bundle, MaskBundle) else load_mask_bundle(bundle)
    folder, say = Path(out), progress or (lambda *_, **__: None)
    coco = Path(masks).suffix.lower() == ".json"
    if coco and (not isinstance(loaded.refiner, SegRefinerInfo) or labels):
        raise InputError("masks %s: COCO results: expected a SegRefiner bundle and no --labels" % masks)
    if background is not None and not labels:
        raise InputError("--background: expected --labels with it; leave it out")
    if annotations is not None and not coco:
        raise InputError("--annotations: expected COCO results (.json) as masks; leave it out")
    _check_place(folder, loaded, photos, masks)
    record = Record()
    with contextlib.ExitStack() as stack:
        if coco:
            from crispseg.runtime.mask_coco import CocoRun

            work: Any = CocoRun(Path(photos), Path(masks), annotations, ignore_exif, limit)
        else:
            work = _Pairs(photos, masks, labels, background, ignore_exif, limit)
        refiner = open_mask_refiner(loaded, options)
        stack.callback(refiner.close)
        make_folder(folder)
        for old in ("report.json", "results.json") if coco else ("report.json",):
            with contextlib.suppress(FileNotFoundError):
                (folder / old).unlink()  # one of an earlier run must not stand beside new files
        start = time.perf_counter()
        with Interrupt(lambda: None) as interrupt:
            done = 0

            def tell(finished: float) -> None:
                last = "finishing this photo, Ctrl-C again stops at once" if interrupt.hit else ""
                say(finished, work.total, last)

            for done in work.run(refiner, folder, record, lambda: interrupt.hit, tell):
                tell(done)
            interrupted = bool(interrupt.hit) and done < work.total
        seconds = time.perf_counter() - start
        outputs = work.finish(folder, interrupted)
        given = {"photos": str(photos), "masks": str(masks), **_hashes(work.files(), interrupted)}
        report = _report(loaded, refiner, record, options, given, outputs, interrupted, seconds, done)
    write_json(folder / "report.json", report)
    return report


class _Pairs:
    """Photos with one mask or label map each."""

    def __init__(
        self, photos: Any, masks: Any, labels: bool, background: Optional[int], ignore_exif: bool, limit: Optional[int]
    ) -> None:
        found = find_pairs(photos, masks)
        self.unused = unused_masks(found, Path(masks)) if Path(photos).resolve() != Path(masks).resolve() else []
        self.pairs = found[:limit]
        check_pairs(self.pairs, labels, ignore_exif)
        self.total = len(self.pairs)
        self.labels, self.background, self.ignore_exif = labels, background, ignore_exif
        self.kind = "labels" if labels else "masks"

    def run(  # type: ignore[no-untyped-def]
        self, refiner: Any, folder: Path, record: Record, stop: Callable[[], bool], tell: Callable[[float], None]
    ):
        """Yields the number of finished photos; calls ``tell`` with it and the share of the one under way."""
        make_folder(folder / self.kind)
        if self.unused:
            record.warnings.append(
                "%d masks have no photo and were left out: %s%s"
                % (len(self.unused), ", ".join(self.unused[:3]), ", ..." if self.unused[3:] else "")
            )
        for done, pair in enumerate(self.pairs):
            if stop():
                return

            def part(work: float, total: float, done: int = done) -> None:
                tell(done + min(work / total, 1.0))

            with record.timed("decode"):
                given = (read_label_map if self.labels else read_mask)(pair.mask)
                photo = read_photo(pair.photo, given.shape, self.ignore_exif)
            with record.timed("refine"):
                if self.labels:
                    found = refine_labels(refiner, photo, given, self.background, progress=part)
                else:
                    found = refiner.refine(photo, given, part)
                    if 0 < int(given.max()) < 128:
                        record.warnings.append(
                            "%s: its brightest grey level is %d, below one half: no foreground; --labels reads class "
                            "ids" % (pair.mask.name, int(given.max()))
                        )
            made = found.mask if self.labels else np.where(found.mask, np.uint8(255), np.uint8(0))
            before = given if self.labels else np.where(given >= 128, np.uint8(255), np.uint8(0))
            record.changed.append(100.0 * float((made != before).mean()))
            record.items.append({"name": pair.name, "height": given.shape[0], "width": given.shape[1], **found.facts})
            with record.timed("encode"):
                write_png(folder / self.kind / (pair.name + ".png"), made)
            yield done + 1

    def files(self) -> Dict[str, List[Path]]:
        """What was read."""
        return {"photos": [pair.photo for pair in self.pairs], "masks": [pair.mask for pair in self.pairs]}

    def finish(self, folder: Path, interrupted: bool) -> Dict[str, str]:
        """What was written."""
        return {self.kind: self.kind}


def _check_place(folder: Path, bundle: MaskBundle, photos: Union[str, Path], masks: Union[str, Path]) -> None:
    place, root = (Path(os.path.realpath(str(p))) for p in (folder, bundle.path))
    if root == place or root in place.parents:
        raise InputError("output %s: lies inside the bundle %s; choose another folder" % (folder, bundle.path))
    written = {str(place / "masks"), str(place / "labels"), str(place / "results.json")}
    for source in (photos, masks):
        real = os.path.realpath(str(source))
        if real in written or os.path.dirname(real) in written:
            raise InputError("output %s: would replace the input %s; choose another folder" % (folder, source))


def _hashes(files: Dict[str, List[Path]], interrupted: bool) -> Dict[str, Optional[str]]:
    """Of the files that were read; none of a run that was broken off."""
    return {} if interrupted else {"%s_sha256" % what: hash_read(paths) for what, paths in files.items()}


def _report(
    bundle: MaskBundle, refiner: Any, record: Record, options: RefineOptions, given: Dict[str, Any],
    outputs: Dict[str, str], interrupted: bool, seconds: float, done: int,
) -> Dict[str, Any]:  # fmt: skip
    stages = {name: values for name, values in record.stages.items() if values}
    if refiner.calls:
        stages["network"] = refiner.calls
    report = new_report(
        "refine",
        bundle={**mask_bundle_facts(bundle), "refiner": bundle.kind, "random_weights": bundle.refiner.random_weights},
        input=given,
        output=outputs,
        photos=done,
        interrupted=interrupted,
        seconds=round(seconds, 3),
        network_calls=len(refiner.calls),
        pictures=refiner.pictures,
        changed=round(float(np.mean(record.changed)), 4) if record.changed else None,
        stages={name: summarise(values) for name, values in stages.items()},
        items=record.items,
        peak_memory_mib=peak_memory_mib(),
        pipeline=refiner.describe(),
        environment=environment(options.threads, backend=refiner.backend),
    )  # fmt: skip
    if bundle.refiner.random_weights:
        record.warnings.append("random weights: the masks mean nothing, only the times do")
    if record.warnings:
        report["warnings"] = record.warnings
    report["definitions"].update(DEFINITIONS)
    return report
