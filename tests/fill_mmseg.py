"""Weights and inputs of the golden files of MMSegmentation's networks, made from their names."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "bases_mmseg"
#: Golden architecture -> base.
NAMES = {"segnext_l": "segnext-l", "fcn_hr48": "hrnet-w48", "segformer_b5": "segformer-b5"}
#: The same, of networks without logits, which have their own tests.
QUERIES = {"mask2former_swin_t": "mask2former-swin-t", "mask2former_swin_l": "mask2former-swin-l"}


def manifest(arch):
    """Facts about one architecture."""
    return json.loads((DATA / "manifest.json").read_text())["nets"][arch]


def golden(arch):
    """Official outputs: ``out_HxW`` [classes,h,w] and ``probe_featI_96x160``."""
    return np.load(DATA / f"{arch}.npz")


def keys(arch):
    """Name -> shape, in the order of the official state dict."""
    lines = golden(arch)["keys"].tobytes().decode().split("\n")
    pairs = (line.partition(" ") for line in lines)
    return {name: tuple(int(n) for n in shape.split("x")) if shape else () for name, _, shape in pairs}


def fill(arch, names=None):
    """Official name -> array; of ``names`` alone when given."""
    gain, out = manifest(arch)["gain"], {}
    for name, shape in keys(arch).items():
        if names is not None and name not in names:
            continue
        g, leaf = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))), name.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            out[name] = np.zeros((), np.int64)
            continue
        if leaf == "running_mean" or leaf.endswith("bias"):
            value = g.normal(0, 0.1, shape)
        elif leaf == "relative_position_index":  # constant, not drawn
            side = int(shape[0] ** 0.5)
            y, x = np.divmod(np.arange(side * side), side)
            out[name] = (y[:, None] - y + side - 1) * (2 * side - 1) + (x[:, None] - x + side - 1)
            continue
        elif leaf == "relative_position_bias_table":
            value = g.normal(0, 0.5, shape)
        elif any(part in name for part in ("query_embed.", "query_feat.", "level_embed.", "level_encoding.")):
            value = g.normal(0, 1, shape)
        elif leaf.startswith("layer_scale_"):
            value = g.uniform(0.02, 0.1, shape)
        elif leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
            value = g.uniform(0.5, 1.5, shape)
        else:
            value = g.normal(0, gain * _extra(name) * np.sqrt(2.0 / np.prod(shape[1:])), shape)
        out[name] = value.astype(np.float32)
    return out


def _extra(name):
    """Factors that keep Mask2Former's queries distinct and its classes decided."""
    if "transformer_decoder.layers." in name and name.endswith(("out_proj.weight", "ffn.layers.1.weight")):
        return 0.15
    return 2.5 if "decode_head.cls_embed." in name else 1.0


def digest(state):
    """SHA-256 over names and values, in order."""
    h = hashlib.sha256()
    for name, value in state.items():
        h.update(name.encode())
        h.update(np.ascontiguousarray(value).tobytes())
    return h.hexdigest()


def image(height, width):
    """Normalised input [1,3,height,width], float32."""
    return np.load(DATA / "inputs.npz")[f"in_q_{height}x{width}"].astype(np.float32) / 32


def network(arch):
    """(base, its record, official state) with the golden weights."""
    import torch

    from crispseg.models.bases import base_info, build_base
    from crispseg.models.checkpoints import load_strict

    state = {key: torch.from_numpy(value) for key, value in fill(arch).items()}
    info = base_info({**NAMES, **QUERIES}[arch])
    net = build_base(info.name, 19)
    load_strict(net, state, info.droppable, arch)
    return net.eval(), info, state


#: Base -> constants of its module with which one block of every kind is left.
SHALLOW = {
    "segnext_l": ("segnext", {"DEPTHS": (1, 1, 2, 1)}),
    "fcn_hr48": ("hrnet", {"MODULES": (1, 1, 1), "BLOCKS": 1}),
    "segformer_b5": ("segformer", {"DEPTHS": (1, 1, 2, 1)}),
}


def shallow(arch, monkeypatch):
    """(base of little depth, its record, state) with the golden weights of the layers that are left.

    Building and exporting it takes a tenth of the time. The base is built so until ``monkeypatch`` is undone.
    """
    import importlib

    import torch

    from crispseg.models.bases import base_info, build_base
    from crispseg.models.checkpoints import load_strict

    module, values = SHALLOW[arch]
    for name, value in values.items():
        monkeypatch.setattr(importlib.import_module(f"crispseg.models.bases.{module}"), name, value)
    info = base_info(NAMES[arch])
    net = build_base(info.name, 19)
    own = net.state_dict()
    state = {key: torch.from_numpy(value) for key, value in fill(arch, own).items()}
    load_strict(net, state, info.droppable, arch)
    return net.eval(), info, state
