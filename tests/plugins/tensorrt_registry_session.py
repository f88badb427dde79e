"""The plugin library in a real plugin registry, without a GPU; prints what it found as JSON.

    python tests/plugins/tensorrt_registry_session.py LIBRARY MODEL     (tensorrt_lean_bindings on sys.path)

MODEL is a stripped refiner: every node with all its attributes is created as the parser would create it. A process of
its own: the registry cannot be emptied, and a mistake in this ABI ends the process. Of the real runtime this touches
the registry alone: a Runtime object crashes at exit where there is no GPU, and so does IPluginV2.destroy from Python.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import tensorrt_lean_bindings as trt
from onnx import AttributeProto, helper

from crispseg.engines.tensorrt import registry as loader
from crispseg.plugins.ops import BY_NAME


def field(attribute):
    """A plugin field as NVIDIA's parser makes it of an attribute."""
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.STRING:
        return trt.PluginField(attribute.name, np.frombuffer(value + b"\0", np.int8), trt.PluginFieldType.CHAR)
    if attribute.type == AttributeProto.INT:
        return trt.PluginField(attribute.name, np.array([value], np.int32), trt.PluginFieldType.INT32)
    values = value if attribute.type == AttributeProto.FLOATS else [value]
    return trt.PluginField(attribute.name, np.array(values, np.float32), trt.PluginFieldType.FLOAT32)


def create(creator, attributes):
    fields = [field(attribute) for attribute in attributes]
    return creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)


def ours(registry):
    return sorted(creator.name for creator in registry.all_creators if creator.name in BY_NAME)


def created(registry, model):
    """Every node of the model: what its plugin says of itself."""
    rows = []
    for node in model.graph.node:
        if node.op_type not in BY_NAME:
            continue
        plugin = create(registry.get_creator(node.op_type, "1", ""), node.attribute)
        assert plugin is not None, (node.op_type, node.name)
        core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
        runtime = plugin.get_capability_interface(trt.PluginCapabilityType.RUNTIME)
        assert runtime is not None
        rows.append(
            [core.plugin_name, core.plugin_version, core.plugin_namespace, build.num_outputs, len(node.output)]
            + [build.metadata_string, build.timing_cache_id, build.format_combination_limit]
        )
    return rows


def main(library, path):
    model = onnx.load(path)
    registry = trt.get_plugin_registry()
    found = {"tensorrt": trt.__version__, "before": ours(registry)}
    # Our own loader, as `crispseg build` uses it.
    loader.load(trt, loader.find_library())
    loader.load(trt, loader.find_library())
    loader.require_creators(trt, sorted(BY_NAME))
    loader.require_fields(trt, model)
    found["loaded"] = ours(registry)
    found["classes"] = sorted({type(c).__name__ for c in registry.all_creators if c.name in BY_NAME})
    found["again"] = registry.load_library(library) is None
    found["wrong"] = [registry.get_creator(*key) is None for key in (("SubmanifoldMap", "2", ""), ("Nothing", "1", ""))]
    creator = registry.get_creator("SparseConv2d", "1", "")
    found["fields"] = {f.name: [str(f.type).rsplit(".", 1)[-1], f.size] for f in creator.field_names}
    found["created"] = created(registry, model)

    plugin = ctypes.CDLL(library)
    plugin.crispseg_plugin_error.restype = ctypes.c_char_p
    node = next(node for node in model.graph.node if node.op_type == "SparseConv2d")
    less = [attribute for attribute in node.attribute if attribute.name != "taps"]
    found["refused"] = create(creator, less) is None
    found["message"] = plugin.crispseg_plugin_error().decode()

    # Deregistration asks getCreators again and drops exactly these.
    registry.deregister_library(loader._loaded.popitem()[1])
    found["deregistered"] = ours(registry)
    handle = registry.load_library(library)
    found["reloaded"] = ours(registry)
    registry.deregister_library(handle)

    found["same_major"] = plugin.crispseg_tensorrt_version() // 10000 == int(trt.__version__.split(".")[0])
    found["registered"] = register(plugin)
    found["after"] = ours(registry)
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # the creators above stay in a registry that outlives the interpreter's idea of them


def register(plugin):
    """The way of 8.5, which loads no libraries."""
    plugin.crispseg_register.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    maps = Path("/proc/self/maps").read_text().splitlines()
    core = ctypes.CDLL(next(line.split()[-1] for line in maps if "libnvinfer" in line))
    core.getPluginRegistry.restype = ctypes.c_void_p
    address = core.getPluginRegistry()
    return [plugin.crispseg_register(one, b"") for one in (address, address, None)]


if __name__ == "__main__":
    main(*sys.argv[1:])
