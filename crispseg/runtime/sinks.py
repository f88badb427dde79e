"""Writing pictures and videos so that a file under its final name is always complete."""

from __future__ import annotations

import contextlib
import errno
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from crispseg.errors import EnvironmentMismatch, InputError
from crispseg.files import partial_path
from crispseg.runtime.png import encode_png
from crispseg.runtime.video import import_av

# Encoding runs beside the networks on the same CPUs. Against veryfast at 21 this takes 0.6 of the processor time, for a
# quarter more bytes at the same PSNR (within 0.5 dB).
_PRESET = {"preset": "superfast", "crf": "22"}


def make_folder(path: Union[str, Path]) -> Path:
    """Create a folder and its parents and check that files can be written to it. Raises InputError."""
    path = Path(path)
    probe = path / ".crispseg.partial"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from None
    return path


def write_png(path: Union[str, Path], array: np.ndarray) -> None:
    """Write uint8 [H, W] (8-bit grey, values as they are: class ids) or [H, W, 3] RGB as a PNG, all or nothing.

    Raises InputError when it cannot be written.
    """
    if array.dtype != np.uint8 or not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise InputError("%s: expected uint8 [H,W] or [H,W,3], found %s %s" % (path, array.dtype, array.shape))
    path = Path(path)
    partial = partial_path(path)
    try:
        with open(str(partial), "wb") as stream:
            stream.write(encode_png(array))
        os.replace(str(partial), str(path))
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


class VideoWriter:
    """An H.264 MP4 (yuv420p, BT.709, index in front) that browsers play; sides are padded to even by repetition.

    Frames go to ``NAME.partial.mp4``; :meth:`close` finishes the file and gives it its name, also after an
    interruption; :meth:`abort` removes it. Size and colours are fixed by the first frame.
    """

    def __init__(self, path: Union[str, Path], fps: Union[Fraction, int], threads: int = 0) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise _cannot_write(self.path, IsADirectoryError())
        self.partial = self.path.with_name(self.path.stem + ".partial" + self.path.suffix)
        self.fps = Fraction(fps)
        self.frames = 0
        self._threads = threads
        self._av = import_av()
        self._errors = (self._av.error.FFmpegError, OSError, ValueError)
        self._container: Any = None
        self._stream: Any = None
        self._shape: Optional[tuple] = None
        # A frame lasts `_step` ticks exactly, and a tick is at most 0.1 ms, for sources with uneven times.
        scale = max(1, -(-10000 // self.fps.numerator))
        self._ticks = self.fps.numerator * scale
        self._step = self.fps.denominator * scale
        self._last = -1

    def write(self, image: np.ndarray, time_s: Optional[float] = None) -> None:
        """Append uint8 [H, W, 3] RGB shown at ``time_s`` (default: one frame after the last). Raises InputError."""
        if self._container is None:
            self._open(image)
        if image.shape != self._shape:
            raise InputError(
                "%s: expected frames of %s, found %s; the source changes its size, run its parts one by one"
                % (self.path, self._shape, image.shape)
            )
        pad = image.shape[0] % 2, image.shape[1] % 2
        if any(pad):
            image = np.pad(image, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")
        try:
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts = self._last = self._tick(time_s)
            frame.time_base = Fraction(1, self._ticks)
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except self._errors as error:
            raise _cannot_write(self.path, error) from None
        self.frames += 1

    def _tick(self, time_s: Optional[float]) -> int:
        if time_s is None:
            return self._last + self._step if self._last >= 0 else 0
        grid = round(time_s * self.fps)
        # Containers round times to a ms or so: snap to the regular grid when that is all that is wrong.
        near = abs(time_s * float(self.fps) - grid) < 0.1
        tick = grid * self._step if near else int(round(time_s * self._ticks))
        return max(tick, self._last + 1)

    def _open(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        try:
            self.partial.write_bytes(b"")  # PyAV opens late: an unwritable place shall show at the first frame
            self._container = self._av.open(str(self.partial), "w", format="mp4", options={"movflags": "+faststart"})
        except self._errors as error:
            raise _cannot_write(self.path, error) from None
        try:
            stream = self._container.add_stream("libx264", rate=self.fps)
        except Exception as error:
            self.abort()
            raise EnvironmentMismatch(
                "video: expected a PyAV with libx264, found none (%s); pip install av" % error
            ) from None
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = dict(_PRESET)
        stream.time_base = stream.codec_context.time_base = Fraction(1, self._ticks)
        stream.codec_context.thread_count = self._threads
        for name, value in (("color_range", 1), ("colorspace", 1), ("color_primaries", 1), ("color_trc", 1)):
            with contextlib.suppress(AttributeError, ValueError):  # absent from old PyAV: players then guess
                setattr(stream.codec_context, name, value)
        self._stream = stream
        self._shape = image.shape

    def close(self) -> None:
        """Finish the file and give it its name; without frames nothing is left. Raises InputError (disk full)."""
        if self._container is None:
            return
        try:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
            self._container.close()
            self._container = None
            self._check()
            os.replace(str(self.partial), str(self.path))
        except self._errors as error:
            self.abort()
            raise _cannot_write(self.path, error) from None
        except BaseException:
            self.abort()
            raise

    def _check(self) -> None:
        # A full disk can go unnoticed until the index is missing: read it back before the file gets its name.
        with self._av.open(str(self.partial)) as container:
            found = container.streams.video[0].frames
        if found != self.frames:
            raise OSError("expected %d frames in the finished file, found %d (disk full?)" % (self.frames, found))

    def abort(self) -> None:
        """Give up: close and remove the unfinished file."""
        if self._container is not None:
            with contextlib.suppress(Exception):
                self._container.close()
            self._container = None
        with contextlib.suppress(OSError):
            self.partial.unlink()


def _cannot_write(path: Path, error: BaseException) -> InputError:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return InputError("output %s: expected a folder, found a file; choose another place or remove it" % path)
    if isinstance(error, IsADirectoryError):
        return InputError("output %s: expected a file, found a folder; choose another place or remove it" % path)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    too_long = getattr(error, "errno", None) == errno.ENAMETOOLONG
    advice = "shorten the names of the input" if too_long else "free space or choose another place"
    return InputError("output %s: cannot be written: %s; %s" % (path, " ".join(reason.split())[:200], advice))
