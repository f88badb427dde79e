"""Synthetic base outputs whose uncertain pixels lie in bands along object boundaries, as those of a street scene do.

Closed curves and thin poles are painted into a class map at the logits' own size; a blur gives every pixel a mixture
of the classes around it, and the temperature of the logits is set so that the wanted share of pixels is active.
"""

from __future__ import annotations

import numpy as np


def class_map(height: int, width: int, classes: int, rng: np.random.Generator, scale: float) -> np.ndarray:
    """uint8 [height, width]: sky, ground, closed curves and poles. ``scale`` = pixels of the frame per pixel here."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    horizon = height * 0.45 + height * 0.04 * np.sin(x * (5.0 / width))
    labels = np.where(y < horizon, 0, 1).astype(np.uint8)
    area = height * width * scale * scale / 2**21  # 1 at 1024 x 2048
    for _ in range(max(3, int(46 * area))):
        cy, cx = rng.uniform(0.15, 0.95) * height, rng.uniform(0, 1) * width
        radius = rng.uniform(20, 120) / scale
        angle = np.arctan2(y - cy, x - cx)
        wave = 1.0 + 0.25 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.12 * np.sin(7 * angle + rng.uniform(0, 6))
        distance = np.hypot(y - cy, (x - cx) * rng.uniform(0.6, 1.6))
        labels[distance < radius * wave] = rng.integers(2, classes)
    for _ in range(max(2, int(34 * area))):
        left, top = rng.uniform(0, 1) * width, rng.uniform(0.1, 0.5) * height
        inside = (np.abs(x - left) * scale < rng.uniform(3, 9)) & (y > top) & (y < top + rng.uniform(60, 420) / scale)
        labels[inside] = rng.integers(2, classes)
    return labels


def _blur(planes: np.ndarray, radius: int) -> np.ndarray:
    for axis in (1, 2):
        for _ in range(2):
            n = planes.shape[axis]
            pad = [(0, 0)] * 3
            pad[axis] = (radius + 1, radius)
            total = np.cumsum(np.pad(planes, pad, mode="edge"), axis=axis, dtype=np.float32)
            window = 2 * radius + 1
            planes = (np.take(total, np.arange(window, n + window), axis) - np.take(total, np.arange(n), axis)) / window
    return planes


def entropy(logits: np.ndarray) -> np.ndarray:
    """float [C, ...] -> float [...], as SelectPixels defines it."""
    e = np.exp(logits - logits.max(0))
    p = e / e.sum(0)
    return -(p * np.log(np.maximum(p, 1e-5))).sum(0)


def band_scene(
    height: int = 1024,
    width: int = 2048,
    *,
    classes: int = 19,
    stride: int = 4,
    density: float = 0.12,
    threshold: float = 0.3,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Frame, logits and density of a scene of bands.

    Returns:
        image uint8 [H, W, 3], logits float32 [1, C, H/stride, W/stride] (rounded up), and the share of low-resolution
        pixels whose entropy is above ``threshold`` (with nearest upsampling that is the density of the frame).
    """
    rng = np.random.default_rng(seed)
    h, w = -(-height // stride), -(-width // stride)
    labels = class_map(h, w, classes, rng, float(stride))
    planes = _blur(np.eye(classes, dtype=np.float32)[labels].transpose(2, 0, 1), max(1, 8 // stride))
    evidence = np.log(planes + 1e-3) + rng.normal(size=planes.shape).astype(np.float32) * 0.02
    low, high = 0.1, 30.0
    for _ in range(24):  # more contrast, fewer uncertain pixels
        middle = (low * high) ** 0.5
        share = float((entropy(evidence * middle) > threshold).mean())
        low, high = (middle, high) if share > density else (low, middle)
    logits = np.ascontiguousarray(evidence * high, np.float32)[None]
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    palette = rng.integers(30, 226, (classes, 3))
    image = palette[labels[rows][:, columns]] + rng.integers(-12, 13, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), logits, float((entropy(logits[0]) > threshold).mean())


if __name__ == "__main__":
    print(f"density {band_scene()[2]:.4f}")
