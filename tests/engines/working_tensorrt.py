"""The stand-in for tensorrt whose engines compute: the refiner by ``stripped.py``, a base as a copy of fixed logits.

Like TensorRT it wants a run before the capture once addresses have changed, and plugins that are registered and have
their kernels before an engine with plugins is opened. The order of what matters stands in ``order``.
"""

from __future__ import annotations

import base64
import ctypes
import json
from pathlib import Path

import onnx
from fake_tensorrt_behaviour import Behaviour
from stripped import Raw, StrippedEngine

from crispseg.engines import cuda, cuda_driver
from crispseg.engines.cuda_kernels import Kernels


def capturing(handle):
    status = ctypes.c_int()
    assert cuda_driver.library().cuStreamIsCapturing(ctypes.c_void_p(handle), ctypes.byref(status)) == 0
    return bool(status.value)


class Working(Behaviour):
    """``logits``: what the base gives. ``plugin``: the plugin library, which knows the kernels that it was given."""

    def __init__(self, module, version):
        super().__init__(module, version)
        self.logits = self.plugin = None
        self.order, self.contexts = [], 0
        self.captured = []  # (context, address of the image) of each run of a refiner in a graph

    def do_IPluginRegistry_load_library(self, state, plugin_path):
        self.order.append("load plugins")
        return super().do_IPluginRegistry_load_library(state, plugin_path)

    def do_OnnxParser_parse(self, state, model, path=None):
        self.state(state["network"])["onnx"] = bytes(model)
        return super().do_OnnxParser_parse(state, model, path)

    def do_Builder_build_serialized_network(self, state, network, config):
        built = super().do_Builder_build_serialized_network(state, network, config)
        plan = json.loads(bytes(built)[4:])
        plan["onnx"] = base64.b64encode(self.state(network)["onnx"]).decode()
        return self.new("IHostMemory", b"PLAN" + json.dumps(plan).encode())

    def do_Runtime_deserialize_cuda_engine(self, state, serialized_engine):
        engine = super().do_Runtime_deserialize_cuda_engine(state, serialized_engine)
        refiner = engine is not None and any(kind.startswith("PLUGIN") for _, kind in self.state(engine)["layers"])
        self.order.append("open refiner" if refiner else "open base")
        if refiner and not self.plugins:
            self.log("ERROR", "Cannot find plugin: SelectPixels, version: 1")
            return None
        return engine

    def do_ICudaEngine_create_execution_context(self, state, **options):
        made = super().do_ICudaEngine_create_execution_context(state, **options)
        device, inner = cuda.open_device(0), self.state(made)
        self.contexts += 1
        inner.update(fresh=True, device=device)
        if any(kind.startswith("PLUGIN") for _, kind in state["layers"]):
            if not inner["user"] or "refiner" not in state:  # shared scratch memory: the same tensors for all contexts
                path = ctypes.CDLL(str(self.plugin)).seen_kernels
                path.restype = ctypes.c_char_p
                given = (path() or b"").decode()
                model = onnx.load_from_string(base64.b64decode(state["onnx"]))
                kernels = Kernels(device, Path(given).read_bytes() if given else None)
                state["refiner"] = StrippedEngine(model, device, kernels)
            inner["refiner"] = state["refiner"]
        else:
            inner["logits"] = cuda.upload_now(device, self.logits)
        return made

    def do_IExecutionContext_set_tensor_address(self, state, name, memory):
        state["fresh"] = True
        return super().do_IExecutionContext_set_tensor_address(state, name, memory)

    def do_IExecutionContext_execute_async_v3(self, state, stream_handle):
        ready = super().do_IExecutionContext_execute_async_v3(state, stream_handle)
        captured = capturing(stream_handle)
        if not ready or (captured and state["fresh"]):
            return False  # what it put off would wait, and allocate, inside the capture
        state["fresh"] = False
        refiner, addresses = state.get("refiner"), state["addresses"]
        self.order.append("%s %s" % ("capture" if captured else "run", "refiner" if refiner else "base"))
        if refiner and captured:
            self.captured.append((id(state), addresses["image"]))
        if refiner:
            refiner.enqueue(stream_handle, addresses)
        else:
            stream = Raw(state["device"], stream_handle)
            stream.copy(addresses["logits"], state["logits"].address, state["logits"].nbytes)
        return True
