"""Bundles of modules and ONNX files that crispseg does not know: what the tests of such bases share."""

from __future__ import annotations

import io

import foreign_nets
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from crispseg.classes import ClassInfo
from crispseg.export import project
from crispseg.export.sources import Foreign

C, SIZE = 5, (22, 34)
CLASSES = [ClassInfo(f"c{i}", (i, i, i)) for i in range(C)]


def bundle(tmp_path, base, weights=None, **options):
    said = []
    made = project.export_bundle(
        base,
        tmp_path / "b",
        weights=weights,
        refiner=None,
        height=44,
        width=68,
        classes=CLASSES,
        progress=said.append,
        **options,
    )
    return made, said


def run(made, x):
    session = ort.InferenceSession(str(made.file("base.onnx")), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": x})[0]


def image(size=SIZE):
    return np.random.default_rng(1).standard_normal((1, 3, *size)).astype(np.float32)


def module(kind="tensor", **options):
    return Foreign(module="foreign_nets:Net", arguments={"kind": kind}, **options)


def exported(kind="tensor", size=SIZE, dynamic=False, opset=17):
    buffer = io.BytesIO()
    axes = {"x": {0: "n", 2: "h", 3: "w"}} if dynamic else None
    net = foreign_nets.Net(C, kind=kind).eval()
    image = torch.zeros(1, 3, *size)
    torch.onnx.export(net, (image,), buffer, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes)
    return onnx.load_model_from_string(buffer.getvalue())


def save(tmp_path, model):
    onnx.save(model, str(tmp_path / "net.onnx"))
    return Foreign(onnx=tmp_path / "net.onnx")


def refused(tmp_path, model, error, match):
    base = save(tmp_path, model)
    with pytest.raises(error, match=match):
        bundle(tmp_path, base)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def wrapped(model, before=(), after=(), **changes):
    """The model with nodes in front of "x" or behind its output."""
    graph = model.graph
    if after:
        graph.node.extend(after)
        graph.output[0].CopyFrom(changes["output"])
    if before:
        for node in reversed(before):
            graph.node.insert(0, node)
        graph.input[0].CopyFrom(changes["input"])
    return model
