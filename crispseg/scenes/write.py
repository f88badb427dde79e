"""Scenes as files: pictures, labels, and a clip that a video reader takes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Dict, Optional, Set, Union

import numpy as np
from PIL import Image

from crispseg.errors import EnvironmentMismatch, InputError
from crispseg.scenes.render import check_size, render


def write_scenes(
    out: Union[str, Path],
    count: int,
    height: int,
    width: int,
    seed: int = 0,
    video: bool = False,
    fps: int = 25,
    image_format: str = "png",
) -> Dict[str, Any]:
    """Write out/images/NNNN.png (or .jpg) and out/labels/NNNN.png (8-bit ids).

    ``video=False``: ``count`` independent scenes of seeds seed, seed+1, ...; ``video=True``: ``count`` frames of one
    clip, and out/clip.mp4 (H.264), which has exactly the frames' size: an odd side takes yuv444p instead of yuv420p.
    Every file appears whole or not at all. Returns a summary that JSON can hold: out, count, height, width, seed,
    video, images, labels, clip, pixel_format (of the clip), class_share (share of all pixels by class id).
    Raises InputError for a bad count, size, format, frame rate or folder, EnvironmentMismatch when a clip is asked
    for and PyAV is missing.
    """
    _check(count, height, width, video, fps, image_format)
    out = Path(out)
    images, labels_dir = out / "images", out / "labels"
    digits = max(4, len(str(count - 1)))
    stems = [str(i).zfill(digits) for i in range(count)]
    _require_no_others(images, {f"{stem}.{image_format}" for stem in stems})
    _require_no_others(labels_dir, {f"{stem}.png" for stem in stems})
    try:
        images.mkdir(parents=True, exist_ok=True)
        labels_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: expected a folder to write to, found {error.strerror}; choose another folder"
        ) from error
    clip = _Clip(out / "clip.mp4", height, width, fps) if video else None
    totals = np.zeros(256, np.int64)
    step = 25.0 / fps
    try:
        for i, stem in enumerate(stems):
            image, labels = render(seed, i * step, height, width) if video else render(seed + i, 0.0, height, width)
            totals += np.bincount(labels.ravel(), minlength=256)
            _save(Image.fromarray(image), images / f"{stem}.{image_format}", image_format)
            _save(Image.fromarray(labels), labels_dir / f"{stem}.png", "png")
            if clip is not None:
                clip.add(image)
        if clip is not None:
            clip.finish()
    except OSError as error:
        raise InputError(
            f"{out}: expected to write there, found {error}; free space or choose another folder"
        ) from error
    finally:
        if clip is not None:
            clip.drop()
    share = {str(i): round(float(n) / float(totals.sum()), 5) for i, n in enumerate(totals) if n}
    return {
        "out": str(out),
        "count": count,
        "height": height,
        "width": width,
        "seed": seed,
        "video": video,
        "images": str(images),
        "labels": str(labels_dir),
        "clip": str(out / "clip.mp4") if video else None,
        "pixel_format": pixel_format(height, width) if video else None,
        "class_share": share,
    }


def _require_no_others(folder: Path, names: Set[str]) -> None:
    """Raise InputError where other files lie: pictures of a data set, or scenes of a longer call. Hidden ones may."""
    try:
        others = sorted(item.name for item in folder.iterdir() if item.name not in names and item.name[0] != ".")
    except OSError:  # not there yet, or no folder: whoever makes it says so
        return
    if others:
        raise InputError(
            f"{folder}: expected no other files there, found {others[0]}"
            f"{f' and {len(others) - 1} more' if others[1:] else ''}; choose another folder, or empty it"
        )


def _check(count: int, height: int, width: int, video: bool, fps: int, image_format: str) -> None:
    if count < 1:
        raise InputError(f"scene count: expected at least 1, found {count}; give a positive number")
    check_size(height, width)
    if not 1 <= fps <= 240:
        raise InputError(f"frame rate: expected 1..240, found {fps}; choose another rate")
    if image_format not in ("png", "jpg"):
        raise InputError(f"image format: expected png or jpg, found {image_format}; choose one of them")


def pixel_format(height: int, width: int) -> str:
    """Of a clip. In 4:2:0 H.264 counts in pairs of pixels; a padded clip would not fit its labels any more."""
    return "yuv444p" if height % 2 or width % 2 else "yuv420p"


def _save(image: Image.Image, path: Path, image_format: str) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        if image_format == "jpg":
            image.save(partial, "JPEG", quality=95, subsampling=0)
        else:
            image.save(partial, "PNG", compress_level=3)
        os.replace(str(partial), str(path))
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


class _Clip:
    """An H.264 file that appears under its name when it is finished."""

    def __init__(self, path: Path, height: int, width: int, fps: int) -> None:
        try:
            import av
        except ImportError as error:
            raise EnvironmentMismatch(
                "a clip needs the package av (PyAV), which is not installed: pip install av"
            ) from error
        self._av = av
        self._path = path
        self._partial: Optional[Path] = path.with_name(path.name + ".partial")
        try:
            self._box = av.open(str(self._partial), mode="w", format="mp4")
        except OSError as error:
            raise InputError(f"{path}: expected to write there, found {error}; choose another folder") from error
        self._stream = self._box.add_stream("libx264", rate=fps)
        self._stream.width = width
        self._stream.height = height
        self._stream.pix_fmt = pixel_format(height, width)
        self._stream.options = {"crf": "14", "preset": "veryfast"}

    def add(self, image: np.ndarray) -> None:
        for packet in self._stream.encode(self._av.VideoFrame.from_ndarray(image, format="rgb24")):
            self._box.mux(packet)

    def finish(self) -> None:
        for packet in self._stream.encode():
            self._box.mux(packet)
        self._box.close()
        os.replace(str(self._partial), str(self._path))
        self._partial = None

    def drop(self) -> None:
        """Remove what an interrupted clip left."""
        if self._partial is not None:
            self._box.close()
            if self._partial.exists():
                self._partial.unlink()
            self._partial = None
