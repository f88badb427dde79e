"""Remove the portable bodies, for a runtime that has the ops as plugins.

Before: any model. After: no function of domain crispseg, no node overload; everything else as it was. A parser that
prefers a model-local function to a plugin would otherwise never call the plugin.
"""

from __future__ import annotations

from onnx import ModelProto

from crispseg.plugins.ops import DOMAIN


def strip_bodies(model: ModelProto) -> int:
    """Strip in place; returns how many functions went."""
    kept = [type(f).FromString(f.SerializeToString()) for f in model.functions if f.domain != DOMAIN]
    removed = len(model.functions) - len(kept)
    del model.functions[:]
    model.functions.extend(kept)
    for node in model.graph.node:
        if node.domain == DOMAIN:
            node.ClearField("overload")
    return removed
