"""Frames as a network sees them: the pipeline's own preprocessing, for calibration."""

from __future__ import annotations

from typing import Tuple

import numpy as np

from crispseg.bundle import Bundle, NetInfo
from crispseg.runtime.geometry import placement, resize_image, to_canvas
from crispseg.runtime.pipeline import normalise, pad_colour


def prepare(frame: np.ndarray, bundle: Bundle, net: NetInfo, fit: str = "auto") -> Tuple[np.ndarray, np.ndarray]:
    """(canvas uint8 [H,W,3], input float32 [1,3,h,w]) of a frame uint8 [H0,W0,3] RGB.

    The canvas is what the refiner reads, the input what the dense network ``net`` reads.
    """
    place = placement((frame.shape[0], frame.shape[1]), (bundle.height, bundle.width), fit)
    canvas = np.ascontiguousarray(to_canvas(frame, place, pad_colour(net)))
    value = np.empty((1, 3, net.height, net.width), np.float32)
    normalise(resize_image(canvas, net.height, net.width), net, value)
    return canvas, value
