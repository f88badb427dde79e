"""A stand-in for the tensorrt module, made from the recorded API of one release (tests/data/tensorrt).

Every class, method, keyword, property and enum member is there exactly when the release has it: anything else raises
AttributeError or TypeError, as the real bindings do. Calls are recorded. Behaviour is the little that a build and a run
need, with the rules that the releases are known to have: flags against strong typing, engines of another version, local
functions before plugins.
"""

from __future__ import annotations

import enum
import gzip
import json
import re
import types
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "tensorrt"
VERSIONS = ("8.5.3", "8.6.1", "10.0.1", "10.3.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106")
_DTYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}


def surface(version):
    """The recorded API of a release."""
    with gzip.open(DATA / f"api-{version}.json.gz") as stream:
        return json.loads(stream.read())


def split_arguments(text):
    """ "self: A, b: x[y, z] = 1" -> [("self", "A", False), ("b", "x[y, z]", True)]."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text + ","):
        depth += c in "[(<{"
        depth -= c in "])}" or (c == ">" and text[i - 1 : i + 1] != "->" and depth > 0)
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    found = []
    for part in filter(None, parts):
        head, equals, _ = part.partition(" = ")
        name, _, kind = head.partition(":")
        found.append((name.strip(), kind.strip(), bool(equals)))
    return found


class Signature:
    """One overload: names, kinds and defaults of the arguments behind self, and what comes back."""

    def __init__(self, text, method=True):
        body, _, result = text.rpartition(") -> ")
        self.text, self.result = text, result.strip()
        arguments = split_arguments(body.partition("(")[2])
        self.arguments = arguments[1:] if method and arguments and arguments[0][0] in ("self", "this") else arguments

    def bind(self, module, args, kwargs):
        """name -> value; None when the call does not fit."""
        if len(args) > len(self.arguments):
            return None
        names = [a[0] for a in self.arguments]
        bound = dict(zip(names, args))
        for name, value in kwargs.items():
            if name not in names or name in bound:
                return None
            bound[name] = value
        for name, kind, optional in self.arguments:
            if name not in bound:
                if not optional:
                    return None
            elif not fits(module, kind, bound[name], optional):
                return None
        return bound


def fits(module, kind, value, optional=False):
    """Whether pybind11 would convert the value."""
    kind = kind.replace("nvinfer1::", "").replace("nvonnxparser::", "")
    if optional and value is None:
        return True
    if kind == "str":
        return isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool)
    if "SupportsInt" in kind or kind == "int":
        return isinstance(value, int) and not isinstance(value, enum.Enum)
    if "SupportsFloat" in kind or kind == "float":
        return isinstance(value, (int, float))
    if kind == "Dims":
        return isinstance(value, (tuple, list)) or type(value).__name__ == "Dims"
    if kind in ("tuple", "list"):
        return isinstance(value, __builtins__[kind] if isinstance(__builtins__, dict) else getattr(__builtins__, kind))
    if "uffer" in kind:
        return isinstance(value, (bytes, bytearray, memoryview))
    known = getattr(module, kind, None)
    return not isinstance(known, type) or isinstance(value, known)


class Rejected(Exception):
    """The stand-in does not know what a call should do."""


def make(version, behave=None):
    """A module that looks like tensorrt ``version``. ``behave``: what an instance of Behaviour does."""
    api = surface(version)
    module = types.ModuleType("tensorrt")
    module.__version__ = api["version"]
    behaviour = (behave or Behaviour)(module, version)
    module.behaviour, module.calls = behaviour, behaviour.calls
    for name, record in api["classes"].items():
        setattr(module, name, build_class(module, name, record, behaviour))
    for name, texts in api["functions"].items():
        if texts and not texts[0].startswith("python:"):
            setattr(module, name, function(module, name, [Signature(t, False) for t in texts], behaviour))
    return module


def build_class(module, name, record, behaviour):
    if "enum" in record:
        return enum.IntEnum(name, sorted(record["enum"].items(), key=lambda item: item[1])) if record["enum"] else None
    body = {"__module__": "tensorrt", "_surface": True}
    methods, properties = record.get("methods", {}), record.get("properties", {})
    for method, texts in methods.items():
        if method in ("__init__", "__enter__", "__exit__", "__del__"):
            continue
        body[method] = function(
            module, method, [Signature(t) for t in texts if not t.startswith("python:")], behaviour, name
        )
    for key, access in properties.items():
        body[key] = attribute(key, access, behaviour, name)
    for key, inner in record.get("nested", {}).items():
        if isinstance(inner, dict):
            body[key] = build_class(module, key, inner["class"], behaviour)
    constructors = [Signature(t) for t in methods.get("__init__", []) if not t.startswith("python:")]

    def __init__(self, *args, **kwargs):
        if not constructors:
            raise TypeError(f"tensorrt.{name}: No constructor defined!")
        bound = next((b for b in (s.bind(module, args, kwargs) for s in constructors) if b is not None), None)
        if bound is None:
            raise TypeError(f"tensorrt.{name}: expected {[s.text for s in constructors]}, found {args} {kwargs}")
        behaviour.created(name, self, bound)

    def __setattr__(self, key, value):
        own = getattr(type(self), "_surface_class", None) is not type(self)  # a Python subclass has its own dict
        if key not in properties and not key.startswith("_") and not own:
            raise AttributeError(f"tensorrt.{name} has no attribute {key!r}")
        object.__setattr__(self, key, value)

    body["__init__"], body["__setattr__"] = __init__, __setattr__
    bases = (bytes,) if name == "IHostMemory" else (object,)
    bases = tuple(getattr(module, b) for b in record["bases"] if isinstance(getattr(module, b, None), type)) or bases
    made = type(name, bases, body)
    made._surface_class = made
    return made


def function(module, name, signatures, behaviour, owner=None):
    def call(*args, **kwargs):
        this, rest = (args[0], args[1:]) if owner else (None, args)
        if not signatures:
            raise Rejected(f"{owner}.{name}: no recorded signature")
        for signature in signatures:
            bound = signature.bind(module, rest, kwargs)
            if bound is not None:
                return behaviour.called(owner, name, this, bound, signature.result)
        raise TypeError(f"tensorrt.{owner}.{name}: expected {[s.text for s in signatures]}, found {rest} {kwargs}")

    call.__name__ = name
    return call


def attribute(key, access, behaviour, owner):
    def get(self):
        return behaviour.get(owner, key, self)

    def put(self, value):
        behaviour.put(owner, key, self, value)

    return property(get, put if access == "rw" else None)


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
    def created_logger(self, logger):
        self.logger = logger

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
