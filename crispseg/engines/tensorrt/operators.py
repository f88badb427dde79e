"""Which ONNX operators TensorRT's parser takes, as its own documentation lists them for 8.5 and 10.0.

``operators.json``: release -> {source, opset, operators: name -> types}. An operator with no types listed takes any.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

RELEASES = ("8.5", "10.0")


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
