"""Which ONNX operators TensorRT's parser takes, as its own documentation lists them for 8.5 and 10.0.

``operators.json``: release -> {source, opset, operators: name -> types}. An operator with no types listed takes any.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List

RELEASES = ("8.5", "10.0")
#: Operator -> what computes the same with operators that TensorRT 8.5 lists.
REMEDIES = {
    "LayerNormalization": "write it as ReduceMean, Sub, Mul, ReduceMean, Add, Sqrt, Div, Mul, Add",
    "GroupNormalization": "write it as Reshape, InstanceNormalization, Reshape, Mul, Add",
    "Gelu": "write it as Div, Erf, Add, Mul, Mul",
    "Mish": "write it as Mul(x, Tanh(Softplus(x)))",
    "Bernoulli": "leave random layers out: export the network in evaluation mode",
    "AffineGrid": "compute the grid as a constant of the network",
    "CenterCropPad": "write it as Slice and Pad with constant sizes",
    "Unique": "compute it outside the network",
}


def table(release: str) -> Dict[str, Any]:
    """The table of a release: source, opset (the newest one it reads), operators."""
    with open(str(Path(__file__).with_name("operators.json")), encoding="utf-8") as stream:
        return json.load(stream)[release]


def unsupported(model: Any, release: str) -> List[str]:
    """What of an ONNX model the table does not list, as "node (operator)"; ops of domain crispseg are plugins.

    Args:
        model: onnx.ModelProto.
        release: "8.5" or "10.0".
    """
    listed = table(release)
    found = []
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > listed["opset"]:
            text = "opset %d (TensorRT %s reads up to %d)"
            found.append(text % (entry.version, release, listed["opset"]))
    if release == "8.5":
        found += ["function %s (model-local functions are read since 9.0)" % f.name for f in model.functions]
    for node in model.graph.node:
        if node.domain == "crispseg":
            continue
        if node.domain not in ("", "ai.onnx") or node.op_type not in listed["operators"]:
            found.append("%s (%s)" % (node.name or node.output[0], node.op_type))
    return found


def advice(release: str, gaps: List[str]) -> List[str]:
    """A sentence for every operator of ``gaps`` (what ``unsupported`` found): its nodes, and what to do."""
    by_op: Dict[str, List[str]] = {}
    for gap in gaps:
        found = re.match(r"(.*) \((\w+)\)$", gap)
        if found:
            by_op.setdefault(found.group(2), []).append(found.group(1))
    said = ["TensorRT %s: %s; export it at an older opset" % (release, gap) for gap in gaps if gap.startswith("opset")]
    for op, nodes in by_op.items():
        remedy = REMEDIES.get(op, "rewrite it with listed operators")
        more = " and %d more" % (len(nodes) - 1) if len(nodes) > 1 else ""
        text = "TensorRT %s does not list %s (node %s%s): %s, or run this base in ONNX Runtime (--backend cuda)"
        said.append(text % (release, op, nodes[0], more, remedy))
    return said
