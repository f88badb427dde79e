"""Weights of the refiner's golden files, made again from nothing but the name and shape of each tensor.

Every tensor has its own generator: PCG64 seeded with the CRC-32 of its key, one float64 draw of the whole shape.
BatchNorm variances and scales are uniform in 0.5 .. 1.5; means and biases normal with deviation 0.1; kernels and
matrices normal with variance 2 / fan-in; counters zero.
"""

from __future__ import annotations

import json
import zlib
from math import prod, sqrt
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "sparserefine"
FACTS = json.loads((DATA / "keys.json").read_text())


def parse_keys(lines):
    """["name 9x3x8", "counter"] -> {name: shape}."""
    split = (line.partition(" ") for line in lines)
    return {name: tuple(int(n) for n in shape.split("x")) if shape else () for name, _, shape in split}


def values(key, shape):
    """Array for one key."""
    kind = key.split(".")[-1]
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var" or (kind == "weight" and len(shape) == 1):
        made = draw.uniform(0.5, 1.5, shape)
    elif kind in ("running_mean", "bias"):
        made = draw.normal(0.0, 0.1, shape)
    else:
        # Sparse kernels keep Cout last, torch's own layers keep it first.
        fan_in = prod(shape[:-1]) if kind == "kernel" else prod(shape[1:])
        made = draw.normal(0.0, sqrt(2.0 / fan_in), shape)
    return made.astype(np.float32)


def load_into(module):
    """Fill every tensor of a torch module by the rule; returns the module in eval mode."""
    import torch

    own = module.state_dict()
    module.load_state_dict({key: torch.from_numpy(values(key, tuple(own[key].shape))) for key in own})
    return module.eval()
