"""Portable bodies for an ONNX Runtime that mixes up overloads of one function.

A refiner's bodies are model-local functions, several variants of one op told apart by ``overload`` (IR 10). Of ONNX
Runtime, 1.19 to 1.24 end the process when they meet them (an assertion), and older ones refuse IR 10. With a name for
each variant the same graph runs everywhere, as IR 8.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Tuple

if TYPE_CHECKING:
    from onnx import ModelProto

KNOWS_OVERLOADS = (1, 27)  # the oldest ONNX Runtime with which bundles were run as they are
_IR = 8  # the one of opset 17


def knows_overloads(version: str) -> bool:
    """Whether an ONNX Runtime of this version takes the file as it is."""
    return _numbers(version) >= KNOWS_OVERLOADS


def has_overloads(model: ModelProto) -> bool:
    """Whether any function of the model is one of several variants."""
    return any(getattr(function, "overload", "") for function in model.functions)


def without_overloads(model: ModelProto) -> ModelProto:
    """Give every variant a name of its own, in place: ``SparseConv2d``, overload ``map_z1`` -> ``SparseConv2d_map_z1``.

    Nodes inside the functions get names too: ONNX Runtime 1.19 calls two of its own the same otherwise.
    """
    taken = {function.name for function in model.functions if not function.overload}
    names = {}
    for function in model.functions:
        if function.overload:
            name = wanted = re.sub(r"[^0-9A-Za-z_]", "_", "%s_%s" % (function.name, function.overload))
            number = 0
            while name in taken:
                number += 1
                name = "%s_%d" % (wanted, number)
            taken.add(name)
            names[function.domain, function.name, function.overload] = name
            function.name = name
            function.ClearField("overload")
        for index, node in enumerate(function.node):
            node.name = node.name or "%s_%d" % (function.name, index)
    for nodes in [model.graph.node, *(function.node for function in model.functions)]:
        for node in nodes:
            found = names.get((node.domain, node.op_type, node.overload))
            if found is not None:
                node.op_type = found
                node.ClearField("overload")
    model.ir_version = min(model.ir_version, _IR)
    return model


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
