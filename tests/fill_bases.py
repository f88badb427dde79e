"""Weights and inputs of the golden files of the bases, regenerated from their names (rule in tests/data/bases)."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "bases"
#: Golden architecture -> base.
NAMES = {
    **{f"sfnet_{n}": f"sfnet-{n}" for n in ("r18", "r50", "r101", "dfv1", "dfv2", "stdc1", "stdc2")},
    **{f"sfnet_lite_{n}": f"sfnet-lite-{n}" for n in ("r18", "stdc1", "stdc2")},
    **{f"srnet_{n}": f"srnet-{n}" for n in ("r50", "r101")},
    **{f"sanet_c{n}": "sanet" for n in (19, 11)},
    **{f"sanet_tiny_c{n}": "sanet-tiny" for n in (19, 11)},
}


def manifest(arch):
    """Facts about one architecture."""
    return json.loads((DATA / "manifest.json").read_text())["archs"][arch]


def _generator(text):
    return np.random.Generator(np.random.PCG64(zlib.crc32(text.encode())))


def fill(keys, gains=(("*", 1.0),)):
    """``keys`` is a list of "name AxBxC" (or "name" alone: a counter); returns name -> array."""
    shapes = {}
    for line in keys:
        name, _, shape = line.partition(" ")
        shapes[name] = tuple(int(n) for n in shape.split("x")) if shape else ()
    assert [pattern for pattern, _ in gains] == ["*"]
    gain = gains[0][1]
    out = {}
    for name, shape in shapes.items():
        original = re.sub(r"^backbone\.x\d+\.0\.", "backbone.features.", name)
        if original != name and original in out:  # STDC files hold every block under two names
            out[name] = out[original]
            continue
        if name.endswith("num_batches_tracked"):
            out[name] = np.zeros((), np.int64)
            continue
        g = _generator(name)
        parent, _, leaf = name.rpartition(".")
        if leaf == "running_var" or (leaf == "weight" and (parent + ".running_var" in shapes or len(shape) == 1)):
            value = g.uniform(0.5, 1.5, shape)
        elif leaf in ("running_mean", "bias"):
            value = g.standard_normal(shape) * 0.1
        else:
            value = g.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:])) * gain
        out[name] = value.astype(np.float32)
    return out


def digest(state):
    """SHA-256 over the sorted names and the float32 values."""
    h = hashlib.sha256()
    for name in sorted(state):
        if not name.endswith("num_batches_tracked"):
            h.update(name.encode())
            h.update(np.ascontiguousarray(state[name], "<f4").tobytes())
    return h.hexdigest()


def image(arch, height, width):
    """Normalised input [1,3,height,width], float32, and its int8 form."""
    g = _generator(f"{arch}:{height}x{width}")
    q = np.clip(np.rint(g.standard_normal((1, 3, height, width)) * 32), -127, 127).astype(np.int8)
    return q.astype(np.float32) / 32, q


def network(arch):
    """(base, its record, its weights by official name) with the golden weights."""
    import torch

    from crispseg.models.bases import base_info, build_base
    from crispseg.models.checkpoints import load_strict

    facts = manifest(arch)
    filled = fill(facts["keys"], facts["gains"])
    state = {key: torch.from_numpy(value) for key, value in filled.items()}
    info = base_info(NAMES[arch])
    net = build_base(info.name, facts["classes"])
    load_strict(net, state, info.droppable, arch)
    return net.eval(), info, state
