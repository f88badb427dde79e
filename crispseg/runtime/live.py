"""Live sources: a camera, a network stream or a GStreamer pipeline, always delivering the latest frame.

A thread reads as fast as the source gives. A frame that nobody took before the next one came is dropped and counted,
so the picture that is segmented is never older than one frame, however slow the network is.
"""

from __future__ import annotations

import contextlib
import threading
import time
from fractions import Fraction
from typing import Any, Callable, Iterator, Optional, Tuple

import numpy as np

from crispseg.errors import EnvironmentMismatch, InputError

STREAM_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "udp://", "srt://")
_FIRST_FRAME_S = 20.0


class LatestFrame:
    """Runs ``read`` in a thread; iterating gives (image, seconds since the first frame) of the newest frame.

    ``read() -> uint8 [H,W,3] RGB, or None at the end`` may block. ``dropped`` counts frames that were replaced before
    anybody took them. An exception in ``read`` is raised in the iterating thread. ``stop`` may be set to True without a
    lock (from a signal handler): the iteration ends within 0.2 s.
    """

    def __init__(self, read: Callable[[], Optional[np.ndarray]], name: str, first_frame_s: float = _FIRST_FRAME_S):
        self.dropped = 0
        self._name = name
        self._read = read
        self._first_frame_s = first_frame_s
        self._slot: Optional[Tuple[np.ndarray, float]] = None
        self._change = threading.Condition()
        self.stop = False
        self._ended = False
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._loop, name="crispseg-live", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        first: Optional[float] = None
        error: Optional[BaseException] = None
        try:
            while not self.stop:
                image = self._read()
                if image is None:
                    break
                now = time.monotonic()
                first = now if first is None else first
                with self._change:
                    if self._slot is not None:
                        self.dropped += 1
                    self._slot = (image, now - first)
                    self._change.notify_all()
        except BaseException as caught:
            error = caught
        with self._change:
            self._ended = True
            self._error = error
            self._change.notify_all()

    def __iter__(self) -> Iterator[Tuple[np.ndarray, float]]:
        taken = 0
        deadline = time.monotonic() + self._first_frame_s
        while True:
            with self._change:
                # A short wait keeps Ctrl-C alive on every platform.
                while self._slot is None and not self._ended and not self.stop:
                    self._change.wait(0.2)
                    if not taken and time.monotonic() > deadline:
                        raise InputError(
                            "%s: expected a frame within %g s, found none; check that it sends"
                            % (self._name, self._first_frame_s)
                        )
                item, self._slot = self._slot, None
                if item is None and self._error is not None and not self.stop:
                    raise self._error
            if item is None:
                if not taken and not self.stop:
                    raise InputError("%s: expected at least one frame, found none; check that it sends" % self._name)
                return
            taken += 1
            yield item

    def close(self) -> bool:
        """Stop the thread; False when it still blocks in ``read`` after 2 s (it is a daemon and ends by itself)."""
        with self._change:
            self.stop = True
            self._change.notify_all()
        self._thread.join(2.0)
        return not self._thread.is_alive()


def is_live(source: str) -> bool:
    """True for ``camera:N``, a stream address, or a GStreamer pipeline (elements joined by " ! ")."""
    return source.startswith(("camera:",) + STREAM_SCHEMES) or " ! " in source


def open_live(source: str) -> Tuple[Callable[[], Optional[np.ndarray]], Callable[[], None], Fraction]:
    """Open a live source. Returns (read, close, nominal frames a second); read gives uint8 [H,W,3] RGB, or None.

    ``camera:N`` and GStreamer need OpenCV (EnvironmentMismatch without); streams are read with PyAV over TCP.
    Raises InputError when it cannot be opened.
    """
    if source.startswith(STREAM_SCHEMES):
        from crispseg.runtime.video import VideoReader

        reader = VideoReader(source, live=True)
        frames = iter(reader)

        def read_stream() -> Optional[np.ndarray]:
            item = next(frames, None)
            return None if item is None else item[0]

        return read_stream, reader.close, reader.fps
    if source.startswith("camera:"):
        number = source[len("camera:") :]
        if not number.isdigit() or len(number) > 4:
            raise InputError("%s: expected camera:0, camera:1, ...; found %r after camera:" % (source, number))
        return _open_opencv(source, int(number))
    return _open_opencv(source, source)


def _open_opencv(source: str, target: Any) -> Tuple[Callable[[], Optional[np.ndarray]], Callable[[], None], Fraction]:
    try:
        import cv2
    except ImportError as error:
        fix = "pip install opencv-python-headless"
        if isinstance(target, str):  # pip's OpenCV would be the wrong one
            fix = "install the system's python3-opencv: pip's has no GStreamer"
        raise EnvironmentMismatch(
            "%s: cameras and GStreamer need OpenCV, found none (%s); %s" % (source, error, fix)
        ) from None
    with contextlib.suppress(AttributeError):  # its warnings say less than the error below
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if isinstance(target, str):
        if not _has_gstreamer(cv2):
            raise EnvironmentMismatch(
                "%s: expected an OpenCV with GStreamer, found %s without; install the system's python3-opencv, or read "
                "the camera as camera:N or by its rtsp:// address" % (source, cv2.__version__)
            )
        # OpenCV hands frames over through an appsink; without one the pipeline would run into the void.
        pipeline = target if "appsink" in target else target + " ! videoconvert ! appsink drop=true max-buffers=1"
        capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    else:
        capture = cv2.VideoCapture(target)
    if not capture.isOpened():
        capture.release()
        if isinstance(target, str):
            raise InputError(
                "%s: expected a pipeline that opens, found one that does not; run it with gst-launch-1.0" % source
            )
        raise InputError(
            "%s: expected a camera that opens, found none; check `v4l2-ctl --list-devices`, and that you may read "
            "/dev/video%d (group video; in a container: --device)" % (source, target)
        )
    fps = capture.get(cv2.CAP_PROP_FPS)
    rate = Fraction(fps).limit_denominator(1001) if fps and 1 <= fps <= 1000 else Fraction(30)

    def read() -> Optional[np.ndarray]:
        good, frame = capture.read()
        if not good or frame is None:
            return None
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise InputError("%s: expected colour frames of 8 bits, found shape %s" % (source, frame.shape))
        return np.ascontiguousarray(frame[:, :, ::-1])

    return read, capture.release, rate


def _has_gstreamer(cv2: Any) -> bool:
    for line in cv2.getBuildInformation().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "GStreamer":
            return value.strip().upper().startswith("YES")
    return False
