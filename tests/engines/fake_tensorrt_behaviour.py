"""What the calls of the stand-in for the tensorrt module do: the little that a build and a run need.

The rules are those that the releases are known to have: flags against strong typing, engines of another version, local
functions before plugins.
"""

from __future__ import annotations

import json
import re
import types
from pathlib import Path

_DTYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}


class Rejected(Exception):
    """The stand-in does not know what a call should do."""


class Behaviour:
    """What the calls do. Every object keeps its state in ``_state``."""

    def __init__(self, module, version):
        self.module, self.version = module, version
        self.calls = []
        self.plugins = {}  # name -> field names, of the creators that are registered
        self.loaded = []
        self.library = {}  # what a load registers
        self.memory_error = None

    def new(self, kind, content=b"", /, **state):
        cls = getattr(self.module, kind)
        made = bytes.__new__(cls, content) if issubclass(cls, bytes) else object.__new__(cls)
        object.__setattr__(made, "_state", dict(state))
        return made

    def state(self, this):
        if "_state" not in getattr(this, "__dict__", {}):
            object.__setattr__(this, "_state", {})
        return this._state

    def created(self, name, this, bound):
        self.calls.append(name)
        self.state(this).update(bound)

    def get(self, owner, key, this):
        state = self.state(this)
        if hasattr(self, f"get_{owner}_{key}"):
            return getattr(self, f"get_{owner}_{key}")(state)
        return state.get(key)

    def put(self, owner, key, this, value):
        self.calls.append(f"{owner}.{key}=")
        self.state(this)[key] = value

    def called(self, owner, name, this, bound, result):
        self.calls.append(f"{owner}.{name}" if owner else name)
        state = self.state(this) if owner else {}
        handler = getattr(self, f"do_{owner}_{name}" if owner else f"do_{name}", None)
        if handler is not None:
            return handler(state, **bound)
        if result == "None":
            return None
        if result == "bool":
            return True
        kind = re.sub(r"^nv\w+::", "", result)
        if isinstance(getattr(self.module, kind, None), type):
            return self.new(kind)
        raise Rejected(f"{owner}.{name} -> {result}: no behaviour")

    def log(self, severity, text):
        self.logger.log(getattr(self.module.ILogger.Severity, severity), text)

    # ---- registry
    def do_get_plugin_registry(self, state):
        return self.new("IPluginRegistry")

    def do_IPluginRegistry_load_library(self, state, plugin_path):
        if plugin_path in self.loaded or not Path(plugin_path).is_file():
            return None
        self.loaded.append(plugin_path)
        self.plugins.update(self.library)
        return object()

    def do_IPluginRegistry_get_creator(self, state, type, version, plugin_namespace=""):
        if type not in self.plugins or (version, plugin_namespace) != ("1", ""):
            return None
        return types.SimpleNamespace(name=type, field_names=[types.SimpleNamespace(name=n) for n in self.plugins[type]])

    do_IPluginRegistry_get_plugin_creator = do_IPluginRegistry_get_creator

    # ---- builder
    def do_Builder_create_network(self, state, flags=0):
        self.logger = state["logger"]
        names = self.module.NetworkDefinitionCreationFlag.__members__
        known = sum(1 << int(value) for value in names.values())
        assert flags & ~known == 0, "a bit that this release does not have"
        strong = "STRONGLY_TYPED" in names and bool(flags >> int(names["STRONGLY_TYPED"]) & 1)
        explicit = self.version[0] != "8" or bool(flags >> int(names["EXPLICIT_BATCH"]) & 1)
        return self.new(
            "INetworkDefinition", strong=strong or self.version.startswith("11."), explicit=explicit, layers=[]
        )

    def get_INetworkDefinition_num_layers(self, state):
        return len(state["layers"])

    def get_INetworkDefinition_num_inputs(self, state):
        return len(state["inputs"])

    def do_INetworkDefinition_get_layer(self, state, index):
        return state["layers"][index]

    def do_INetworkDefinition_get_input(self, state, index):
        return state["inputs"][index]

    def do_ILayer_get_output(self, state, index):
        return state["outputs"][index]

    def get_ILayer_num_outputs(self, state):
        return len(state["outputs"])

    def do_OnnxParser_parse(self, state, model, path=None):
        import onnx

        network, graph = self.state(state["network"]), None
        errors = state["errors"] = []
        if not network["explicit"]:
            errors.append((-1, "this network has an implicit batch"))
            return False
        parsed = onnx.load_from_string(bytes(model))
        graph = parsed.graph
        inferred = onnx.shape_inference.infer_shapes(parsed).graph
        kinds = {v.name: v for v in [*inferred.value_info, *inferred.input, *inferred.output]}
        local = {f.name for f in parsed.functions}
        if local and self.version[0] == "8":
            errors.append((0, "No importer registered for op"))
            return False
        v3 = hasattr(self.module.LayerType, "PLUGIN_V3")
        override = self.state(state["network"]).get("override")
        for index, node in enumerate(graph.node):
            kind = {"Cast": "CAST" if hasattr(self.module.LayerType, "CAST") else "IDENTITY", "Conv": "CONVOLUTION",
                    "Softmax": "SOFTMAX", "Concat": "CONCATENATION"}.get(node.op_type, "ELEMENTWISE")  # fmt: skip
            if node.domain == "crispseg":
                if node.op_type in local and not override:  # from 9.0 to 10.6 and, without the flag, later
                    kind = "SHUFFLE"
                elif node.op_type not in self.plugins:
                    errors.append((index, f"getPluginCreator could not find plugin: {node.op_type} version: 1"))
                    return False
                else:
                    kind = "PLUGIN_V3" if v3 else "PLUGIN_V2"
            elif node.op_type == "NoSuchOp":
                errors.append((index, "No importer registered for op: NoSuchOp"))
                return False
            outputs = [self.tensor(name, kinds.get(name)) for name in node.output if name]
            network["layers"].append(
                self.new("ILayer", name=node.name, type=getattr(self.module.LayerType, kind), outputs=outputs)
            )
        network["inputs"] = [self.tensor(value.name, value) for value in graph.input]
        network["outputs"] = [self.tensor(value.name, value) for value in graph.output]
        return True

    def tensor(self, name, value):
        kind, sides = 1, []
        if value is not None:
            kind = value.type.tensor_type.elem_type
            sides = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
        name_of = _DTYPES[kind or 1]
        if name_of == "INT64" and not hasattr(self.module.DataType, name_of):
            name_of = "INT32"  # parsers before 10 cast down
        return self.new("ITensor", name=name, dtype=getattr(self.module.DataType, name_of), shape=sides)

    def do_OnnxParser_set_flag(self, state, flag):
        if flag.name == "ENABLE_PLUGIN_OVERRIDE":
            self.state(state["network"])["override"] = True

    def get_OnnxParser_num_errors(self, state):
        return len(state.get("errors", ()))

    def get_OnnxParser_num_subgraphs(self, state):
        return 0

    def do_OnnxParser_get_error(self, state, index):
        node, text = state["errors"][index]
        return self.new("ParserError", node=node, text=text)

    def do_ParserError_desc(self, state):
        return state["text"]

    def do_ParserError_node(self, state):
        return state["node"]

    def do_ParserError_node_name(self, state):
        return "node %d" % state["node"]

    def do_ParserError_node_operator(self, state):
        return "Op"

    def do_OnnxParser_supports_model(self, state, model, path=None):
        return False, [([0], False)]

    def do_IBuilderConfig_set_flag(self, state, flag):
        state.setdefault("flags", set()).add(flag.name)

    def do_IBuilderConfig_add_optimization_profile(self, state, profile):
        return 0

    def do_IOptimizationProfile_set_shape(self, state, input, min, opt, max):
        state[input] = (min, opt, max)

    def get_Builder_num_DLA_cores(self, state):
        return 2

    get_Runtime_num_DLA_cores = get_Builder_num_DLA_cores

    def get_Builder_platform_has_fast_fp16(self, state):
        return True

    get_Builder_platform_has_fast_int8 = get_Builder_platform_has_fast_fp16

    # ---- timing cache: lines "version key"
    def do_IBuilderConfig_create_timing_cache(self, state, serialized_timing_cache):
        return self.new("ITimingCache", lines=set(bytes(serialized_timing_cache).decode().split("\n")) - {""})

    def do_IBuilderConfig_set_timing_cache(self, state, cache, ignore_mismatch):
        mine = all(line.startswith(self.version) for line in self.state(cache)["lines"])
        if mine or ignore_mismatch:
            state["timing"] = cache
        return mine

    def do_IBuilderConfig_get_timing_cache(self, state):
        return state.get("timing")

    def do_ITimingCache_combine(self, state, input_cache, ignore_mismatch):
        state["lines"] |= {line for line in self.state(input_cache)["lines"] if line.startswith(self.version)}
        return True

    def do_ITimingCache_serialize(self, state):
        return self.new("IHostMemory", "\n".join(sorted(state["lines"])).encode())

    # ---- build
    def do_Builder_build_serialized_network(self, state, network, config):
        net, cfg = self.state(network), self.state(config)
        if net["strong"] and cfg.get("flags", set()) & {"FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"}:
            self.log("ERROR", "API Usage Error (precision flags with a strongly typed network)")
            return None
        if self.memory_error:
            for severity, text in self.memory_error:
                self.log(severity, text)
            return None
        self.log("INFO", "building")
        monitor = cfg.get("progress_monitor")
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            going = monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
            if not going:  # False cancels
                return None
        if cfg.get("int8_calibrator") is not None:
            net["ranges"] = bytes(cfg["int8_calibrator"].read_calibration_cache())
        if cfg.get("timing") is not None:
            self.state(cfg["timing"])["lines"].add(f"{self.version} {len(net['layers'])}")
        io = [[t.name, way, t.dtype.name, list(t.shape)] for way in ("inputs", "outputs") for t in net[way]]
        plan = {"version": self.version, "io": io, "layers": [[x.name, x.type.name] for x in net["layers"]],
                "plugins": sorted(self.plugins), "flags": sorted(cfg.get("flags", ()))}  # fmt: skip
        return self.new("IHostMemory", b"PLAN" + json.dumps(plan).encode())

    # ---- run
    def do_Runtime_deserialize_cuda_engine(self, state, serialized_engine):
        self.logger = state["logger"]
        data = bytes(serialized_engine)
        plan = json.loads(data[4:]) if data[:4] == b"PLAN" else {}
        if plan.get("version") != self.version:
            self.log("ERROR", "The engine plan file is not compatible with this version of TensorRT")
            return None
        return self.new("ICudaEngine", **plan)

    def get_ICudaEngine_num_io_tensors(self, state):
        return len(state["io"])

    def get_ICudaEngine_device_memory_size(self, state):
        return 1 << 20

    get_ICudaEngine_device_memory_size_v2 = get_ICudaEngine_device_memory_size

    def do_ICudaEngine_get_tensor_name(self, state, index):
        return state["io"][index][0]

    def port(self, state, name):
        return next(item for item in state["io"] if item[0] == name)

    def do_ICudaEngine_get_tensor_mode(self, state, name):
        return (
            self.module.TensorIOMode.INPUT if self.port(state, name)[1] == "inputs" else self.module.TensorIOMode.OUTPUT
        )

    def do_ICudaEngine_get_tensor_dtype(self, state, name):
        return getattr(self.module.DataType, self.port(state, name)[2])

    def do_ICudaEngine_get_tensor_shape(self, state, name):
        return tuple(self.port(state, name)[3])

    def do_ICudaEngine_create_execution_context(self, state, **options):
        strategy = getattr(options.get("strategy"), "name", "STATIC")
        return self.new("IExecutionContext", plan=state, addresses={}, shapes={}, user=strategy == "USER_MANAGED")

    def do_ICudaEngine_create_execution_context_without_device_memory(self, state):
        made = self.do_ICudaEngine_create_execution_context(state)
        self.state(made)["user"] = True
        return made

    def do_IExecutionContext_set_device_memory(self, state, memory, size):
        assert size == 1 << 20
        state["device_memory"] = memory

    def do_ICudaEngine_create_engine_inspector(self, state):
        return self.new("EngineInspector", plan=state)

    def do_IExecutionContext_infer_shapes(self, state):
        opened = [p[0] for p in state["plan"]["io"] if p[1] == "inputs" and -1 in p[3]]
        return [name for name in opened if name not in state["shapes"]]

    def do_IExecutionContext_set_input_shape(self, state, name, shape):
        state["shapes"][name] = tuple(shape)
        return True

    def do_IExecutionContext_get_tensor_shape(self, state, name):
        # An open side of an output is taken from the same axis of the first input whose shape was set.
        known = next(iter(state["shapes"].values()), ())
        own = [known[i] if side < 0 and i < len(known) else abs(side)
               for i, side in enumerate(self.port(state["plan"], name)[3])]  # fmt: skip
        return tuple(state["shapes"].get(name, own))

    def do_IExecutionContext_set_tensor_address(self, state, name, memory):
        state["addresses"][name] = memory
        return memory != 0

    def do_IExecutionContext_execute_async_v3(self, state, stream_handle):
        if state.get("profiler") is not None:
            for name, _ in state["plan"]["layers"]:
                state["profiler"].report_layer_time(name, 0.5)
        if state["user"] and not state.get("device_memory"):
            self.log("ERROR", "execution context without device memory")
            return False
        return set(state["addresses"]) == {p[0] for p in state["plan"]["io"]}

    def do_EngineInspector_get_engine_information(self, state, format):
        layers = [{"Name": n, "LayerType": k, "Outputs": [{"Format/Datatype": "Row major linear FP16"}]}
                  for n, k in state["plan"]["layers"]]  # fmt: skip
        return json.dumps({"Layers": layers})
