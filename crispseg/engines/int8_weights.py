"""Weights stored as int8: an initialiser and a DequantizeLinear before SparseConv2d, out of untrusted files."""

from __future__ import annotations

from typing import Any, Mapping, Tuple

import numpy as np

from crispseg.engines.native_memory import is_shape_only
from crispseg.errors import BundleError, UnsupportedOp
from crispseg.plugins.quantise import LARGEST, dequantise


def fold_dequantize(
    node: Any, constants: Mapping[str, np.ndarray], where: str, floats: bool = True
) -> Tuple[np.ndarray, np.ndarray]:
    """The constant that a DequantizeLinear makes.

    Args:
        node: the NodeProto.
        constants: initialisers by name.
        where: text that names the node in messages.
        floats: False: leave the integers as they are.

    Returns:
        float32 [K, Cin, Cout] and its scales, float32 [Cout]; divided by them it gives back the stored integers. Those
        instead of it without ``floats``, or when they are there by shape alone (packed beforehand).

    Raises:
        UnsupportedOp: not a weight of the contract: int8 [K, Cin, Cout], axis 2, float32 scales [Cout], zero point 0.
        BundleError: a scale that is not above 0, or -128, which the symmetric range does not have.
    """
    axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
    others = [attribute.name for attribute in node.attribute if attribute.name != "axis"]
    inputs = list(node.input) + [""] * (3 - len(node.input))
    if len(node.output) != 1 or not node.output[0] or len(inputs) != 3 or others:
        raise UnsupportedOp("%s: DequantizeLinear: expected a weight, its scales and axis 2 alone" % where)
    missing = [name for i, name in enumerate(inputs) if (name or i < 2) and name not in constants]
    if missing:
        raise UnsupportedOp("%s: DequantizeLinear: expected stored constants, found %r" % (where, missing[0]))
    q, scale = constants[inputs[0]], constants[inputs[1]]
    if q.dtype != np.int8 or q.ndim != 3 or axes not in ([2], [-1]):
        raise UnsupportedOp(
            "%s: DequantizeLinear: expected int8 [K,Cin,Cout] along axis 2, found %s %s along %s"
            % (where, q.dtype, list(q.shape), axes or "the default axis")
        )
    if scale.dtype != np.float32 or scale.shape != q.shape[2:]:
        raise UnsupportedOp(
            "%s: DequantizeLinear: expected float32 [%d] scales, found %s %s"
            % (where, q.shape[2], scale.dtype, list(scale.shape))
        )
    zero = constants.get(inputs[2])
    if zero is not None and (zero.dtype != np.int8 or zero.any()):
        raise UnsupportedOp("%s: DequantizeLinear: expected zero point 0 (symmetric int8), found another" % where)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise BundleError("%s: DequantizeLinear: expected scales above 0; calibrate the bundle again" % where)
    if is_shape_only(q):
        return q, scale
    if q.size and int(q.min()) < -LARGEST:
        raise BundleError("%s: DequantizeLinear: expected -127..127, found -128; calibrate the bundle again" % where)
    return (dequantise(q, scale) if floats else q), scale
