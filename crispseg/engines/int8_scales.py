"""The numbers of an int8 network that an engine takes as they are: ONNX Runtime computes with any scale, also NaN."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crispseg.errors import BundleError

if TYPE_CHECKING:
    from onnx import ModelProto

_PAIRS = ("QuantizeLinear", "DequantizeLinear")


def check_scales(model: ModelProto, path: Path) -> None:
    """Check every scale of a calibrated network.

    Raises:
        BundleError: a constant scale of a QuantizeLinear or DequantizeLinear that is not a finite number above 0, or
            an ``x_scale`` of a SparseConv2d that is not finite or below 0 (0 stands for float).
    """
    from onnx import numpy_helper

    arrays = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _PAIRS and len(node.input) > 1 and node.input[1] in arrays:
            scale = numpy_helper.to_array(arrays[node.input[1]]).astype(np.float64)
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                raise _refused(path, node.name, "scales that are finite and above 0", scale.min())
        for entry in node.attribute:
            known = node.op_type == "SparseConv2d" and entry.name == "x_scale"
            if known and not (math.isfinite(entry.f) and entry.f >= 0):
                raise _refused(path, node.name, "a finite x_scale of 0 or more", entry.f)


def _refused(path: Path, node: str, expected: str, found: float) -> BundleError:
    return BundleError(
        "%s: node %r: expected %s, found %g; calibrate the bundle again (crispseg calibrate)"
        % (path, node, expected, found)
    )
