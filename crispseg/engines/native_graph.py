"""Reads refiner.onnx for the native engine: nodes and constants out of an untrusted file.

Model-local functions (the portable bodies) are ignored. What is left must be ops of the contract, Concat of columns,
Cast of stored constants, and DequantizeLinear of stored int8 weights. What the tensors are and whether they fit is
checked in ``native_check``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from crispseg.engines.int8_weights import fold_dequantize
from crispseg.engines.native_memory import shape_only
from crispseg.errors import BundleError, EnvironmentMismatch, UnsupportedOp
from crispseg.plugins.ops import CONTRACT_VERSION, DOMAIN, check_attributes, check_connections

KIND = "sparserefine"
MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
MAX_NODES = 20000
PACKED = "weights.bin"
_PACKED_TYPES = {1: np.float32, 3: np.int8}  # TensorProto.FLOAT and INT8


@dataclass(frozen=True)
class RawNode:
    """One node: ``inputs`` and ``outputs`` map the roles of the contract to tensor names ("" = not connected).

    The inputs of a Concat have the roles "0", "1", ...; its output is "y".
    """

    name: str
    op: str
    inputs: Dict[str, str]
    outputs: Dict[str, str]
    attributes: Dict[str, Any]


@dataclass(frozen=True)
class RawGraph:
    """A graph as it stands in the file: ports as name -> (numpy dtype name, shape), constants as stored.

    ``weight_scales``: name of a dequantised weight among the constants -> its float32 scales [Cout]. ``integers``: its
    int8 values, where the constant has its shape alone.
    """

    path: Path
    inputs: Dict[str, Tuple[str, Tuple[Any, ...]]]
    outputs: Tuple[str, ...]
    nodes: Tuple[RawNode, ...]
    constants: Dict[str, np.ndarray]
    weight_scales: Dict[str, np.ndarray] = field(default_factory=dict)
    integers: Dict[str, np.ndarray] = field(default_factory=dict)


def read_graph(path: Union[str, Path], compiled: Optional[bytes] = None, floats: bool = True) -> RawGraph:
    """Read and validate the outer structure of a refiner.

    Args:
        path: refiner.onnx.
        compiled: content of a compiled graph to read instead of the file: weights that lie packed in PACKED beside it
            are read as zeros of their shape that take no memory.
        floats: False: leave int8 weights in ``integers``; as floats they take four times the memory.

    Raises:
        BundleError: missing, truncated, no ONNX, another kind or contract version, external data, a broken constant.
        UnsupportedOp: an operator or attribute outside the contract.
        EnvironmentMismatch: the onnx package is missing.
    """
    path = Path(path)
    model = _load(path, compiled)
    _check_header(model, path)
    graph = model.graph
    constants = _constants(graph, path, compiled is not None)
    nodes: List[RawNode] = []
    scales: Dict[str, np.ndarray] = {}
    integers: Dict[str, np.ndarray] = {}
    if len(graph.node) > MAX_NODES:
        raise BundleError("%s: expected at most %d nodes, found %d" % (path, MAX_NODES, len(graph.node)))
    for index, proto in enumerate(graph.node):
        where = "%s: node %r" % (path, proto.name or index)
        if proto.domain == DOMAIN:
            nodes.append(_contract_node(proto, index, where))
        elif proto.domain in ("", "ai.onnx") and proto.op_type == "Concat":
            nodes.append(_concat_node(proto, index, where))
        elif proto.domain in ("", "ai.onnx") and proto.op_type == "Cast":
            _fold_cast(proto, constants, where)
        elif proto.domain in ("", "ai.onnx") and proto.op_type == "DequantizeLinear":
            name = proto.output[0]
            value, scales[name] = fold_dequantize(proto, constants, where, floats)
            if value.dtype == np.int8:
                integers[name], value = value, shape_only(value.shape, np.float32)
            _new_constant(constants, name, value, where)
        else:
            name = "%s.%s" % (proto.domain, proto.op_type) if proto.domain else proto.op_type
            raise UnsupportedOp(
                "%s: the native engine runs ops of the contract, Concat, and Cast or DequantizeLinear of constants; "
                "found %s; export the refiner with this version of crispseg, or use backend onnxruntime" % (where, name)
            )
    inputs = {value.name: _port(value, path) for value in graph.input if value.name not in constants}
    outputs = tuple(value.name for value in graph.output)
    if len(set(outputs)) != len(outputs) or not outputs:
        raise BundleError("%s: expected distinct outputs, found %s" % (path, ", ".join(outputs) or "none"))
    return RawGraph(path, inputs, outputs, tuple(nodes), constants, scales, integers)


def _load(path: Path, compiled: Optional[bytes]) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise EnvironmentMismatch(
            "backend native: expected the onnx package, found none (%s); pip install onnx" % error
        ) from None
    try:
        size = path.stat().st_size if compiled is None else len(compiled)
        if compiled is None and not path.is_file():
            raise OSError("not a file")
    except OSError:
        raise BundleError("%s: expected a refiner in ONNX, found no file; export the bundle again" % path) from None
    if not 0 < size <= MAX_FILE_BYTES:
        raise BundleError("%s: expected an ONNX file below 2 GiB, found %d bytes" % (path, size))
    try:
        if compiled is not None:
            return onnx.load_model_from_string(compiled)
        return onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no stable home
        text = " ".join(str(error).split())[:200]
        raise BundleError("%s: expected an ONNX file, found: %s; copy or export it again" % (path, text)) from None


def _check_header(model: Any, path: Path) -> None:
    properties = {item.key: item.value for item in model.metadata_props}
    kind, contract = properties.get("crispseg.kind"), properties.get("crispseg.contract")
    if kind != KIND:
        raise BundleError("%s: expected crispseg.kind %r in the metadata, found %r" % (path, KIND, kind))
    if contract != str(CONTRACT_VERSION):
        raise UnsupportedOp(
            "%s: expected op contract version %d, found %r; export the refiner with this version of crispseg"
            % (path, CONTRACT_VERSION, contract)
        )
    versions = {item.domain: item.version for item in model.opset_import}
    if versions.get(DOMAIN) != CONTRACT_VERSION:
        raise UnsupportedOp(
            "%s: expected version %d of domain %s, found %r" % (path, CONTRACT_VERSION, DOMAIN, versions.get(DOMAIN))
        )
    if model.graph.sparse_initializer:
        raise UnsupportedOp("%s: sparse initialisers are not supported; export the refiner again" % path)


def _constants(graph: Any, path: Path, compiled: bool) -> Dict[str, np.ndarray]:
    from onnx import TensorProto, numpy_helper

    constants: Dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in constants:
            raise BundleError("%s: initialiser %r: expected a name used once" % (path, tensor.name))
        if compiled and _is_packed(tensor):
            constants[tensor.name] = shape_only(tensor.dims, _PACKED_TYPES[tensor.data_type])
            continue
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise BundleError("%s: initialiser %r lies in another file; expected it inside" % (path, tensor.name))
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8):
            raise UnsupportedOp(
                "%s: initialiser %r: expected float32, float16 or int8, found type %d"
                % (path, tensor.name, tensor.data_type)
            )
        try:
            if any(side < 1 for side in tensor.dims):
                raise ValueError("empty")
            value = numpy_helper.to_array(tensor)
        except Exception as error:
            text = " ".join(str(error).split())[:120]
            raise BundleError(
                "%s: initialiser %r: expected values of shape %s, found: %s; copy or export the file again"
                % (path, tensor.name, list(tensor.dims), text)
            ) from None
        if not np.isfinite(value).all():
            raise BundleError("%s: initialiser %r: expected finite values, found NaN or inf" % (path, tensor.name))
        constants[tensor.name] = value
        tensor.ClearField("raw_data")  # the array has its own memory: hold large weights once
    return constants


def _is_packed(tensor: Any) -> bool:
    """Whether a weight of a compiled graph lies in its file of packed weights."""
    places = {item.key: item.value for item in tensor.external_data}
    known = places == {"location": PACKED} and tensor.data_type in _PACKED_TYPES and len(tensor.dims) == 3
    return known and all(1 <= side < 2**20 for side in tensor.dims)


def _contract_node(proto: Any, index: int, where: str) -> RawNode:
    op = proto.op_type
    attributes = check_attributes(op, _attributes(proto, where), where)
    inputs, outputs = check_connections(op, list(proto.input), list(proto.output), attributes, where)
    return RawNode(proto.name or "%s_%d" % (op, index), op, inputs, outputs, attributes)


def _concat_node(proto: Any, index: int, where: str) -> RawNode:
    axis = _attributes(proto, where).get("axis")
    if axis not in (1, -1):
        raise UnsupportedOp("%s: Concat: expected axis 1 (columns), found %r" % (where, axis))
    if not proto.input or not all(proto.input) or len(proto.output) != 1 or not proto.output[0]:
        raise BundleError("%s: Concat: expected inputs and one output" % where)
    inputs = {str(i): name for i, name in enumerate(proto.input)}
    return RawNode(proto.name or "Concat_%d" % index, "Concat", inputs, {"y": proto.output[0]}, {})


def _fold_cast(proto: Any, constants: Dict[str, np.ndarray], where: str) -> None:
    from onnx import TensorProto

    if len(proto.input) != 1 or len(proto.output) != 1 or proto.input[0] not in constants:
        raise UnsupportedOp("%s: Cast: expected a stored constant as its input" % where)
    if _attributes(proto, where).get("to") != TensorProto.FLOAT:
        raise UnsupportedOp("%s: Cast: expected a cast to float32" % where)
    _new_constant(constants, proto.output[0], constants[proto.input[0]].astype(np.float32), where)


def _new_constant(constants: Dict[str, np.ndarray], name: str, value: np.ndarray, where: str) -> None:
    if not name or name in constants:
        raise BundleError("%s: tensor %r is defined twice" % (where, name))
    constants[name] = value


def _attributes(proto: Any, where: str) -> Dict[str, Any]:
    from onnx import AttributeProto

    fields = {
        AttributeProto.INT: "i",
        AttributeProto.FLOAT: "f",
        AttributeProto.STRING: "s",
        AttributeProto.FLOATS: "floats",
        AttributeProto.INTS: "ints",
    }
    values: Dict[str, Any] = {}
    for attribute in proto.attribute:
        if attribute.ref_attr_name or attribute.type not in fields or attribute.name in values:
            raise UnsupportedOp("%s: attribute %r: expected a plain value, given once" % (where, attribute.name))
        value = getattr(attribute, fields[attribute.type])
        values[attribute.name] = (
            tuple(value) if attribute.type in (AttributeProto.FLOATS, AttributeProto.INTS) else value
        )
    return values


def _port(value: Any, path: Path) -> Tuple[str, Tuple[Any, ...]]:
    from onnx import TensorProto

    names = {TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8", TensorProto.INT32: "int32"}
    tensor = value.type.tensor_type
    if tensor.elem_type not in names:
        raise BundleError(
            "%s: input %r: expected float32 or uint8, found type %d" % (path, value.name, tensor.elem_type)
        )
    shape = tuple(side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)
    return names[tensor.elem_type], shape
