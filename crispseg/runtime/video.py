"""Reading video files and network streams with PyAV."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction
from typing import Any, Iterator, Optional, Tuple

import numpy as np

from crispseg.errors import EnvironmentMismatch, InputError

_DEFAULT_FPS = Fraction(25)
# (open, read) in seconds; a camera that stops sending must not hang the program.
_STREAM_TIMEOUT = (15.0, 15.0)

_HD_ROWS = 720
# Matrix coefficients as ITU-T H.273 numbers them.
_COLOUR_SPACE = {1: "ITU709", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M"}


def import_av() -> Any:
    """The PyAV module, or EnvironmentMismatch with the command that installs it."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise EnvironmentMismatch("video: expected the av package, found none (%s); pip install av" % error) from None
    # Any level, PANIC too, has FFmpeg's threads take the interpreter's lock for their messages: one that still decodes
    # while the program ends is killed at that, and whoever frees the decoder waits for it for ever (PyAV #909).
    try:
        av.logging.set_level(None)
    except TypeError:  # the first PyAV that are supported know levels alone
        av.logging.set_level(av.logging.PANIC)
    return av


class VideoReader:
    """The first video stream of a file or URL: iterate for (image uint8 [H,W,3] RGB, time in s), every frame once.

    Rotation from the display matrix is applied. ``fps`` is exact (Fraction). ``count`` is what the container states, or
    None; ``expected`` that, or what its duration means at ``fps``, or None; ``complete`` says whether the frames that
    came last as long as that duration. ``damaged`` counts packets that could not be decoded, and frames that the
    decoder calls corrupt; playing goes on after them, as players do.

    Raises InputError: no readable video, no frame.
    """

    def __init__(self, address: str, live: bool = False) -> None:
        av = import_av()
        self.address = address
        self.damaged = 0
        self._errors = (av.error.FFmpegError, OSError, ValueError)
        options = {"rtsp_transport": "tcp", "fflags": "nobuffer", "flags": "low_delay"} if live else {}
        start = time.monotonic()
        try:
            self._container = av.open(address, options=options, timeout=_STREAM_TIMEOUT if live else None)
        except self._errors as error:
            what = "stream" if live else "picture or video"
            fix = "check the address and the network" if live else "copy it again or convert it with ffmpeg"
            reason = _reason(error)
            if live and time.monotonic() - start >= _STREAM_TIMEOUT[0]:  # FFmpeg calls that "Invalid data"
                reason = "no answer within %g s" % _STREAM_TIMEOUT[0]
            raise InputError("%s: expected a readable %s, found: %s; %s" % (address, what, reason, fix)) from None
        try:
            if not self._container.streams.video:
                raise InputError("video %s: expected a video stream, found none; give a video or a picture" % address)
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "SLICE" if live else "AUTO"  # frame threads delay a live picture
            rate = self._stream.average_rate or getattr(self._stream, "guessed_rate", None) or self._stream.base_rate
            self.fps = Fraction(rate) if rate and 0 < rate <= 1000 else _DEFAULT_FPS
            self.count: Optional[int] = self._stream.frames or None
            self._seconds = self._duration()
            self.expected = self.count or (None if self._seconds is None else round(self._seconds * self.fps))
            self._first_time: Optional[float] = None
            self._last_time = 0.0
            frames = self._decode()
            first = next(frames, None)
            if first is None:
                raise InputError(
                    "video %s: expected at least one frame, found none (empty or damaged); copy it again" % address
                )
        except BaseException:
            self._container.close()
            raise
        self.height, self.width = first[0].shape[:2]
        self._frames = itertools.chain([first], frames)

    def _duration(self) -> Optional[Fraction]:
        """What the file says it lasts, s. A container's own duration may be that of its sound."""
        seconds = None
        if self._stream.duration and self._stream.time_base:
            seconds = self._stream.duration * self._stream.time_base
        elif self._container.duration and len(self._container.streams) == 1:
            seconds = Fraction(self._container.duration, 1000000)
        return seconds if seconds is not None and seconds > 0 else None

    @property
    def complete(self) -> bool:
        """Whether no frame can be missing at the end, whatever the rate that ``fps`` guesses.

        A variable frame rate makes any number of frames out of a duration, but the last one lies at its end.
        """
        if self.count is not None or self._seconds is None:
            return False
        return self._last_time + 2 / self.fps >= self._seconds * Fraction(98, 100)

    def _packets(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self._errors:  # the file ends in the middle of a packet
                self.damaged += 1
                yield None
                return
            yield packet

    def _decode(self) -> Iterator[Tuple[np.ndarray, float]]:
        index = 0
        for packet in self._packets():
            try:
                frames = self._stream.decode(packet)  # None drains the decoder
            except EOFError:
                return
            except self._errors:
                self.damaged += 1
                continue
            for frame in frames:
                self.damaged += bool(getattr(frame, "is_corrupt", False))
                yield self._convert(frame, index)
                index += 1

    def _convert(self, frame: Any, index: int) -> Tuple[np.ndarray, float]:
        space = _COLOUR_SPACE.get(int(getattr(frame, "colorspace", 2)))
        if space is None:  # not stated: HD is BT.709 and smaller pictures are BT.601, as players assume
            space = "ITU709" if frame.height >= _HD_ROWS else "ITU601"
        # Both spaces are named because PyAV versions differ in what they take for granted.
        image = frame.reformat(format="rgb24", src_colorspace=space, dst_colorspace="DEFAULT").to_ndarray()
        turns = int(round(getattr(frame, "rotation", 0) / 90.0)) % 4
        if turns:
            image = np.ascontiguousarray(np.rot90(image, turns))  # both count counterclockwise
        time_s = frame.time
        if time_s is None:
            time_s = index / float(self.fps) + (self._first_time or 0.0)
        if self._first_time is None:
            self._first_time = time_s
        self._last_time = max(self._last_time, time_s - self._first_time)
        return image, time_s - self._first_time

    def __iter__(self) -> Iterator[Tuple[np.ndarray, float]]:
        return self._frames

    def close(self) -> None:
        """Free the decoder."""
        self._container.close()


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
