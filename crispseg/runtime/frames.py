"""Sources of frames: picture, folder, glob, video file, camera, network stream, GStreamer pipeline.

Files lose no frame. Live sources always give the latest frame and count what they dropped.
"""

from __future__ import annotations

import glob
import itertools
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

import numpy as np

from crispseg.errors import InputError, hide_passwords
from crispseg.runtime.images import IMAGE_SUFFIXES, is_image, natural_key, read_image, require_regular
from crispseg.runtime.live import LatestFrame, is_live, open_live

__all__ = ["Frame", "Source", "list_images", "open_source", "read_image"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: running index, ``image`` uint8 [H, W, 3] RGB, time since the first frame in s, name for its files."""

    index: int
    image: np.ndarray
    time_s: float
    name: str


class Source:
    """Frames in order. ``kind`` is "images", "video" or "live"; iterate once, then close (or use ``with``).

    ``count``: number of frames when known. ``fps``: exact Fraction for video and live sources, None for pictures.
    ``files``: what is read from disk, so that no result is written over it.
    ``dropped``: frames of a live source that were skipped so far. ``damaged``: undecodable packets of a video so far.
    ``limit``: most frames that were asked for, or None.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        frames: Iterator[Frame],
        count: Optional[int] = None,
        fps: Optional[Fraction] = None,
        close: Optional[Callable[[], None]] = None,
        counters: Optional[Any] = None,
        files: Sequence[Path] = (),
    ) -> None:
        self.kind = kind
        self.name = name
        self.count = count
        self.fps = fps
        self.limit: Optional[int] = None
        self.files = tuple(files)
        self._frames = frames
        self._close = close
        self._counters = counters

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    @property
    def dropped(self) -> int:
        """Frames of a live source that nobody took in time."""
        return getattr(self._counters, "dropped", 0)

    @property
    def damaged(self) -> int:
        """Packets of a video that could not be decoded, and corrupt frames."""
        return getattr(self._counters, "damaged", 0)

    def warnings(self, read: int) -> List[str]:
        """What is to be told of a video of which ``read`` frames came before it ended by itself."""
        found = []
        expected: int = getattr(self._counters, "expected", None) or 0
        if self.limit is not None:
            expected = min(self.limit, expected)
        # Trimmed starts and rates that are averages explain a few, a variable rate any number.
        least = expected - max(2, expected // 50)
        if self.kind == "video" and read < least and not getattr(self._counters, "complete", False):
            found.append(
                "%s: expected %d frames, as the file says, could read %d: it is cut off or damaged; copy it again"
                % (self.name, expected, read)
            )
        if self.kind == "video" and self.damaged:
            found.append("%s: %d damaged packets or frames; their labels mean nothing" % (self.name, self.damaged))
        return found

    def describe(self) -> Dict[str, Any]:
        """JSON-able facts for the report."""
        return {
            "source": self.name,
            "kind": self.kind,
            "frames": self.count,
            "fps": None if self.fps is None else float(self.fps),
        }

    def stop(self) -> None:
        """Ask a live source to end; takes no lock, so a signal handler may call it."""
        if isinstance(self._counters, LatestFrame):
            self._counters.stop = True

    def close(self) -> None:
        """Free decoder, camera and threads."""
        if self._close is not None:
            self._close()
            self._close = None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def open_source(source: Union[str, Path], limit: Optional[int] = None) -> Source:
    """Open what ``source`` names; stop after ``limit`` frames when given.

    In this order: ``camera:N``, a GStreamer pipeline (contains " ! "), a stream address (rtsp, rtmp, udp, srt), a
    folder of pictures (not below it; natural order), a picture, a video file, a glob of pictures.
    Raises InputError (nothing there, empty, unreadable) or EnvironmentMismatch (library missing).
    """
    text = str(source)
    if limit is not None and limit < 1:
        raise InputError("limit %r: expected at least 1 frame" % limit)
    if "\0" in text or not text:
        raise InputError("input %r: expected a picture, folder, glob, video, camera:N or stream address" % text)
    if is_live(text):
        opened = _live(text)
    elif "://" in text:
        raise InputError("input %s: expected rtsp, rtmp, udp or srt before ://; download the file first" % text)
    elif os.path.isdir(text):
        opened = _pictures(text, list_images(text))
    elif os.path.exists(text):
        require_regular(text, "input")
        opened = _pictures(text, [Path(text)]) if is_image(Path(text)) else _video(text)
    elif glob.has_magic(text):
        found = [Path(item) for item in glob.glob(text, recursive=True) if os.path.isfile(item)]
        pictures = sorted((item for item in found if is_image(item)), key=natural_key)
        if pictures:
            opened = _pictures(text, pictures)
        elif len(found) == 1:
            opened = _video(str(found[0]))
        else:
            raise InputError(
                "input %s: expected pictures (%s), the pattern matches %d other files" % (text, _suffixes(), len(found))
            )
    else:
        raise InputError(
            "input %s: expected a picture, folder, glob, video file, camera:N or stream address, found %s"
            % (text, _why_absent(text))
        )
    if limit is not None:
        opened._frames = itertools.islice(opened._frames, limit)
        opened.limit = limit
        opened.count = limit if opened.count is None else min(opened.count, limit)
    return opened


def list_images(folder: Union[str, Path]) -> List[Path]:
    """Pictures directly in ``folder`` in natural order. Raises InputError when there is none."""
    try:
        entries = [item for item in Path(folder).iterdir() if is_image(item) and not item.name.startswith(".")]
        pictures = sorted((item for item in entries if item.is_file()), key=lambda item: natural_key(item.name))
    except OSError as error:
        raise InputError("folder %s: cannot be read: %s" % (folder, error.strerror or error)) from None
    if not pictures:
        raise InputError("folder %s: expected pictures (%s) in it, found none" % (folder, _suffixes()))
    return pictures


def output_names(paths: Sequence[Path]) -> List[str]:
    """A distinct file name for each picture: its stem, with suffix or folder added only where stems repeat."""
    for name in (
        lambda p: p.stem,
        lambda p: p.name,
        lambda p: "_".join(p.parts[-2:]),
        lambda p: "_".join(part for part in p.parts if part.strip("/\\.")),
    ):
        names = [name(path) for path in paths]
        # Compared without case, because some file systems do.
        if len({item.lower() for item in names}) == len(names):
            return names
    return ["%06d_%s" % (i, path.stem) for i, path in enumerate(paths)]


def _pictures(name: str, paths: List[Path]) -> Source:
    def frames() -> Iterator[Frame]:
        for index, (path, label) in enumerate(zip(paths, output_names(paths))):
            yield Frame(index, read_image(path), float(index), label)

    return Source("images", name, frames(), count=len(paths), files=paths)


def _video(name: str) -> Source:
    from crispseg.runtime.video import VideoReader

    reader = VideoReader(name)

    def frames() -> Iterator[Frame]:
        for index, (image, time_s) in enumerate(reader):
            yield Frame(index, image, time_s, "%06d" % index)

    return Source("video", name, frames(), reader.count, reader.fps, reader.close, reader, [Path(name)])


def _live(name: str) -> Source:
    read, close_reader, fps = open_live(name)
    return live_source(hide_passwords(name), read, close_reader, fps)


def live_source(
    name: str, read: Callable[[], Optional[np.ndarray]], close_reader: Callable[[], None], fps: Fraction
) -> Source:
    """A live source from a function that reads the next frame (uint8 [H,W,3] RGB, None at the end)."""
    latest = LatestFrame(read, name)

    def frames() -> Iterator[Frame]:
        for index, (image, time_s) in enumerate(latest):
            yield Frame(index, image, time_s, "%06d" % index)

    def close() -> None:
        if latest.close():  # a decoder must not be freed under a thread that is still reading from it
            close_reader()

    return Source("live", name, frames(), None, fps, close, latest)


def _why_absent(path: str) -> str:
    """Why nothing exists at a path; a folder on the way that may not be entered hides what is there."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return "nothing there"
    except (OSError, ValueError) as error:
        return "%s; check the path and its permissions" % (getattr(error, "strerror", None) or error)
    return "nothing there"


def _suffixes() -> str:
    return ", ".join(item[1:] for item in IMAGE_SUFFIXES)
