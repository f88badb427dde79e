"""Weights of CRM's golden files, made again from the name and shape of each tensor."""

from __future__ import annotations

import zlib
from functools import lru_cache
from math import prod, sqrt
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "crm"


def keys():
    """{key: (shape, CRC-32 of the values)} of an official checkpoint."""
    split = (line.split() for line in (DATA / "keys.txt").read_text().splitlines())
    return {key: (tuple(int(n) for n in shape.split("x")), int(crc)) for key, shape, crc in split}


def values(key, shape):
    """Array for one key."""
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    kind = key.split(".")[-1]
    if kind == "num_batches_tracked":
        return np.zeros((), np.int64)
    if kind == "running_var" or (kind == "weight" and len(shape) == 1):
        return draw.uniform(0.5, 1.5, shape).astype(np.float32)
    if kind in ("running_mean", "bias"):
        made = draw.normal(0.0, 0.1, shape).astype(np.float32)
        return made + np.float32(1.2) if key == "imnet.layers.8.bias" else made
    made = draw.normal(0.0, sqrt(2.0 / prod(shape[1:])), shape).astype(np.float32)
    return made * np.float32(0.7) if len(shape) == 4 else made


@lru_cache(maxsize=1)
def state():
    """Key -> tensor as in an official file, with ``module.``; the unused fourth stage holds zeros."""
    import torch

    return {
        "module." + key: torch.zeros(shape) if ".layer4." in key else torch.from_numpy(np.asarray(values(key, shape)))
        for key, (shape, _) in keys().items()
    }


@lru_cache(maxsize=1)
def model():
    """The network with those weights."""
    from crispseg.models.refiners.crm import load_crm

    return load_crm({key[len("module.") :]: value for key, value in state().items()})[0]
