"""Bases on device memory: the form of TensorRT's engines, with an engine that writes down what it is asked."""

from __future__ import annotations

import numpy as np
import pytest

from crispseg.engines.device_base import TensorRTBase, single_port
from crispseg.errors import BundleError, UnsupportedOp


class Engine:
    what = "base"

    def __init__(self, dtype=np.float16, inputs=None):
        self.inputs = inputs or {"image": (np.dtype(dtype), (1, 3, 12, 20))}
        self.outputs = {"logits": (np.dtype(np.float32), (1, 5, 6, 10))}
        self.log = []

    def bind(self, addresses):
        self.log.append(("bind", addresses))

    def enqueue(self, stream):
        self.log.append(("enqueue", stream))

    def describe(self):
        return {"backend": "tensorrt"}

    def close(self):
        self.log.append("close")


def test_addresses_are_bound_once():
    engine = Engine()
    base = TensorRTBase(engine)
    assert (base.input_type, base.output_type, base.capturable) == ("fp16", "fp32", True)
    for _ in range(3):
        base.enqueue("stream", 256, 512)
    base.enqueue("stream", 256, 1024)
    assert [entry[0] for entry in engine.log] == ["bind", "enqueue", "enqueue", "enqueue", "bind", "enqueue"]
    assert engine.log[0] == ("bind", {"image": 256, "logits": 512})
    assert base.describe()["captured"] is True
    base.close()
    assert engine.log[-1] == "close"


def test_ports_that_no_pipeline_can_fill_are_refused():
    with pytest.raises(UnsupportedOp, match="expected float32 or float16, found int8"):
        TensorRTBase(Engine(np.int8))
    with pytest.raises(BundleError, match="expected one input, found a, b"):
        TensorRTBase(Engine(inputs={"a": (np.float32, (1,)), "b": (np.float32, (1,))}))
    with pytest.raises(BundleError, match="fixed sides"):
        single_port("net", "input", {"image": (np.float32, [1, 3, "height", 4])})
    with pytest.raises(BundleError, match="fixed sides"):
        single_port("net", "input", {"image": (np.float32, [1, 3, -1, 4])})
