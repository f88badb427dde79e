"""Which images a calibration is made from: chosen by a seed, hashed in order, and refused when they are no data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crispseg.errors import InputError
from crispseg.files import hash_file, hash_listed

FEWEST = 32
DEFAULT = 256


@dataclass(frozen=True)
class ImageSet:
    """Images in the order in which they are read. ``sha256``: of their names and contents in that order.

    ``synthetic``: random pictures, ``files`` is empty then.
    """

    files: tuple[Path, ...]
    sha256: str
    count: int
    synthetic: bool = False
    seed: int = 0


def choose(files: Sequence[Path], count: int = DEFAULT, seed: int = 0) -> ImageSet:
    """At most ``count`` of the files, drawn with ``seed``, in their given order.

    Raises:
        InputError: fewer than 32 images, or fewer than 32 different ones.
    """
    if count < FEWEST:
        raise InputError(f"--count {count}: expected at least {FEWEST} images")
    if len(files) < FEWEST:
        raise InputError(
            f"calibration: expected at least {FEWEST} images of what the network will see, found {len(files)}; give a "
            "folder of real frames (crispseg run writes none: take them from the training or validation set)"
        )
    chosen = list(files)
    if len(chosen) > count:
        keep = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:count])
        chosen = [chosen[index] for index in keep]
    contents = []
    for path in chosen:
        try:
            contents.append(hash_file(path))
        except OSError as error:
            raise InputError(f"image {path}: cannot be read: {error.strerror or error}") from None
    seen = set(contents)
    if len(seen) < FEWEST:
        what = "all identical" if len(seen) == 1 else f"only {len(seen)} different ones"
        raise InputError(
            f"calibration: expected at least {FEWEST} different images, found {len(chosen)}, {what}; give real frames"
        )
    digest = hash_listed((content, path.name) for content, path in zip(contents, chosen))
    return ImageSet(tuple(chosen), digest, len(chosen), seed=seed)


def synthetic(height: int, width: int, count: int = DEFAULT, seed: int = 0) -> ImageSet:
    """Random pictures, for trying out the tools where no images are at hand; :func:`random_frames` draws them."""
    text = f"synthetic {height}x{width} count {count} seed {seed}"
    return ImageSet((), hashlib.sha256(text.encode("ascii")).hexdigest(), count, True, seed)


def random_frames(images: ImageSet, height: int, width: int) -> Iterator[np.ndarray]:
    """The frames of :func:`synthetic`, uint8 [H, W, 3]: noise at several scales. No natural image looks like this."""
    generator = np.random.default_rng(images.seed)
    for _ in range(images.count):
        frame = np.zeros((height, width, 3), np.float32)
        for cell in (1, 8, 64):
            rows, columns = -(-height // cell), -(-width // cell)
            noise = generator.random((rows, columns, 3), np.float32)
            frame += np.repeat(np.repeat(noise, cell, 0), cell, 1)[:height, :width]
        yield np.minimum(frame * (255 / 3), 255).astype(np.uint8)
