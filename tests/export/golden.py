"""Golden files of the official refiner, and networks with the weights they were made with."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from crispseg.models.refiners.sparserefine import SparseRefineConfig, SparseRefiner

DATA = Path(__file__).parents[1] / "data" / "sparserefine"
SMALL = {"planes": (8, 16, 24), "repeats": 1}


def load(name):
    return np.load(DATA / f"{name}.npz")


def fill(key, shape):
    """Weights of the golden files: one draw a key, seeded with the CRC-32 of the key."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if leaf in ("running_mean", "bias"):
        return rng.normal(0.0, 0.1, shape).astype(np.float32)
    fan_in = np.prod(shape[:-1] if leaf == "kernel" else shape[1:])
    return rng.normal(0.0, np.sqrt(2.0 / fan_in), shape).astype(np.float32)


def network(**config):
    module = SparseRefiner(SparseRefineConfig(**{**SMALL, **config})).eval()
    state = {key: torch.from_numpy(fill(key, tuple(value.shape))) for key, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module


def scene(classes=19, height=32, width=48, ratio=2, seed=0):
    """A random image and base logits whose entropy selects about a third of the pixels."""
    rng = np.random.default_rng(seed)
    low = rng.normal(size=(1, classes, height // ratio, width // ratio)).astype(np.float32)
    low[:, 0] += 9 * (rng.random((height // ratio, width // ratio)) < 0.65)
    return {"image": rng.integers(0, 256, (height, width, 3)).astype(np.uint8), "logits": low}
