"""Frames as a network sees them: the pipeline's own preprocessing, for calibration and verification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Tuple, Union

import numpy as np

from crispseg.bundle import Bundle, NetInfo
from crispseg.runtime.bars import BarCells, bar_cells, make_certain
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


@dataclass(frozen=True)
class Prepared:
    """A frame on its way through the engines one by one.

    ``canvas``: uint8 [H,W,3] RGB, what the refiner reads; ``value``: float32 [1,3,h,w], what the base reads; ``bars``:
    cells of the base's logits that lie in the letterbox' bars alone.
    """

    name: str
    canvas: np.ndarray
    value: np.ndarray
    bars: BarCells

    def settle(self, logits: np.ndarray) -> None:
        """Do to the base's logits, float [1,C,h,w], in place, what the pipeline does before the refiner reads them."""
        if self.bars:
            make_certain(logits, self.bars)


def prepared_frames(bundle: Bundle, images: Optional[Union[str, Path]], count: int) -> Iterator[Prepared]:
    """At most ``count`` frames for the base of a bundle: of a picture, folder or video, or of rendered street scenes.

    Raises:
        InputError: they cannot be read.
    """
    net, size = bundle.base, (bundle.height, bundle.width)
    for name, picture in _pictures(size, images, count):
        place = placement((picture.shape[0], picture.shape[1]), size)
        bars = bar_cells(place, (net.logits_height, net.logits_width), net.upsample)
        yield Prepared(name, *prepare(picture, bundle, net), bars)


def _pictures(
    size: Tuple[int, int], images: Optional[Union[str, Path]], count: int
) -> Iterator[Tuple[str, np.ndarray]]:
    if images is None:
        from crispseg.scenes import render

        for index in range(count):
            yield "scene %d" % index, render(index, 10.0 * index, *(
                min(max(size[0], 64), 2048), min(max(size[1], 64), 4096)
            ))[0]  # fmt: skip
        return
    from crispseg.runtime.frames import open_source

    with open_source(images, limit=count) as source:
        for frame in source:
            yield str(frame.name), frame.image
