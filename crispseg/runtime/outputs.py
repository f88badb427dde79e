"""What a run leaves on disk: one file a frame, or one video, for each thing that is saved.

OUT/labels/NAME.png        8-bit class ids at the frame's size (always pictures: a video codec would alter ids)
OUT/overlay/NAME.png       or OUT/overlay.mp4 when the source is a video or a camera; so color and confidence
OUT/report.json            written last
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Union

import numpy as np

from crispseg.bundle import Bundle
from crispseg.errors import InputError
from crispseg.runtime import overlay
from crispseg.runtime.frames import Frame, Source
from crispseg.runtime.pipeline import FrameResult
from crispseg.runtime.sinks import VideoWriter, make_folder, write_png

SAVE = ("labels", "overlay", "color", "confidence")


def parse_save(save: Union[str, Sequence[str]]) -> List[str]:
    """Check what to save: a list, or one comma-separated string. Raises InputError."""
    items = [item.strip() for item in save.split(",")] if isinstance(save, str) else list(save)
    items = [item for item in items if item]
    for item in items:
        if item not in SAVE:
            raise InputError("save %r: expected any of %s" % (item, ", ".join(SAVE)))
    return sorted(set(items), key=SAVE.index)


def require_opacity(alpha: float) -> None:
    """Raise InputError unless the weight of the class colours is one of 0..1."""
    if not 0.0 <= alpha <= 1.0:
        raise InputError("alpha %r: expected a number from 0 to 1" % alpha)


class Outputs:
    """Draws and writes the results of a run under ``out``. Used by one thread (the encoder)."""

    def __init__(
        self,
        out: Path,
        save: Sequence[str],
        source: Source,
        bundle: Bundle,
        alpha: float = 0.5,
        outline: bool = False,
        legend: bool = False,
    ) -> None:
        self.out = out
        self.videos: Dict[str, VideoWriter] = {}
        self._folders: List[str] = []
        self._bundle = bundle
        self._table = overlay.palette(bundle.classes)
        self._alpha = alpha
        self._outline = outline
        self._legend = bundle.classes if legend else None
        self.want = ["labels"]
        self.want += ["confidence"] if "confidence" in save else []
        self.want += ["active"] if "overlay" in save and outline else []
        draw: Dict[str, Callable[[Frame, FrameResult], np.ndarray]] = {
            "labels": lambda frame, result: result.labels,
            "overlay": self._overlay,
            "color": lambda frame, result: overlay.colorize(result.labels, self._table),
            "confidence": lambda frame, result: self._certain(result),
        }
        self._draw = {item: draw[item] for item in save}
        _check_place(out, save, source, bundle)
        self._made = [path for path in [*(out / item for item in save), out] if not os.path.lexists(str(path))]
        make_folder(out)
        for item in save:
            if source.kind == "images" or item == "labels":
                make_folder(out / item)
                self._folders.append(item)
            else:
                self.videos[item] = VideoWriter(out / (item + ".mp4"), source.fps or 25)

    def _overlay(self, frame: Frame, result: FrameResult) -> np.ndarray:
        active = result.active if self._outline else None
        if result.overlay is not None:  # blended on the GPU
            return overlay.decorate(result.overlay, result.labels, active, self._legend)
        return overlay.blend(frame.image, result.labels, self._table, self._alpha, active, self._legend)

    def _certain(self, result: FrameResult) -> np.ndarray:
        assert result.confidence is not None
        return overlay.confidence_image(result.confidence) if "confidence" in self.videos else result.confidence

    def write(self, frame: Frame, result: FrameResult) -> None:
        """Write everything of one frame. Raises InputError."""
        for item, draw in self._draw.items():
            picture = draw(frame, result)
            if item in self.videos:
                self.videos[item].write(picture, frame.time_s)
            else:
                write_png(self.out / item / (frame.name + ".png"), picture)

    def close(self) -> None:
        """Finish the videos; they get their names. Raises InputError (the others are finished all the same)."""
        failed = None
        for video in self.videos.values():
            try:
                video.close()
            except InputError as error:
                failed = error
        if failed is not None:
            raise failed

    def abort(self) -> None:
        """Remove unfinished videos, and new folders that stayed empty; pictures that were written stay."""
        for video in self.videos.values():
            video.abort()
        for folder in self._made:
            with contextlib.suppress(OSError):  # it holds something, or was never made
                folder.rmdir()

    def describe(self) -> Dict[str, str]:
        """What was saved -> folder or file, relative to ``out``."""
        return {item: item + ".mp4" if item in self.videos else item for item in self._draw}


def _check_place(out: Path, save: Sequence[str], source: Source, bundle: Bundle) -> None:
    """Raise InputError when results would replace the input or lie in the bundle, which export replaces as a whole."""
    place = Path(os.path.realpath(str(out)))
    root = Path(os.path.realpath(str(bundle.path)))
    if root == place or root in place.parents:
        raise InputError("output %s: lies inside the bundle %s; choose another folder" % (out, bundle.path))
    targets = {str(place / item) for item in save} | {str(place / (item + ".mp4")) for item in save}
    for path in source.files:
        real = os.path.realpath(str(path))
        if real in targets or os.path.dirname(real) in targets:
            raise InputError("output %s: would replace the input %s; choose another folder" % (out, path))
    # DATA/images with -o DATA: what lies in DATA/labels then is the truth, as data sets are laid out, and no result.
    folders = {Path(os.path.realpath(str(path))).parent for path in source.files}
    if source.kind != "images" or place not in folders | {item.parent for item in folders}:
        return
    for item in save:
        if (place / item).is_dir() and any((place / item).iterdir()) and item not in _written(place):
            raise InputError(
                "output %s: expected no folder %s with files beside the input, which results would replace, found one; "
                "choose another folder" % (out, item)
            )


def _written(place: Path) -> Sequence[str]:
    """What an earlier run wrote here, as its report says."""
    report = place / "report.json"
    try:
        if not report.is_file():  # a pipe would be waited for
            return []
        with open(str(report), encoding="utf-8") as stream:
            return list(json.load(stream)["output"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
