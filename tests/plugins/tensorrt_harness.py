"""The harness (tests/plugins/tensorrt/harness*.cpp) from Python: plays TensorRT's part for a whole stripped refiner."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from onnx import AttributeProto, helper, numpy_helper

from crispseg.engines import cuda

KFLOAT, KHALF, KINT32 = 0, 1, 3  # nvinfer1::DataType
FIELD_FLOAT, FIELD_INT, FIELD_CHAR = 1, 5, 6  # nvinfer1::PluginFieldType
DTYPES = {KFLOAT: np.dtype(np.float32), KHALF: np.dtype(np.float16), KINT32: np.dtype(np.int32)}


class TensorC(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("open", ctypes.c_int32),
        ("dims", ctypes.c_int64 * 8),
    ]


class FieldC(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    ]


class HarnessError(RuntimeError):
    """A check of the harness, or a refusal of a plugin."""


class Harness:
    """One harness library with one plugin library."""

    def __init__(self, harness: Path, plugin: Path, image: bytes = b"") -> None:
        self.library = ctypes.CDLL(str(harness))
        self.library.harness_error.restype = ctypes.c_char_p
        self.library.harness_logged.restype = ctypes.c_char_p
        self.library.harness_outputs.restype = ctypes.c_int64
        self.library.harness_workspace.restype = ctypes.c_uint64
        self.library.harness_enqueue.argtypes = [ctypes.c_int, ctypes.c_int] + [ctypes.c_void_p] * 4
        self.plugin = ctypes.CDLL(str(plugin))
        self.plugin.crispseg_plugin_error.restype = ctypes.c_char_p
        self.plugin.crispseg_set_kernel_image.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.check(self.library.harness_open(str(plugin).encode()))
        if image:
            assert self.plugin.crispseg_set_kernel_image(image, len(image)) == 0

    def check(self, status: int) -> int:
        if status < 0:
            raise HarnessError(self.error() or self.message())
        return status

    def error(self) -> str:
        return self.library.harness_error().decode("utf-8", "replace")

    def message(self) -> str:
        """The last message of the plugin library."""
        return self.plugin.crispseg_plugin_error().decode("utf-8", "replace")

    def logged(self) -> str:
        """What the plugin library wrote to TensorRT's logger last."""
        return self.library.harness_logged().decode("utf-8", "replace")

    def create(self, node: Any, inputs: Sequence[TensorC]) -> int:
        """Take a node through TensorRT's build and deserialisation; its number for :meth:`enqueue`."""
        fields, keep = _fields(node)
        given = (TensorC * len(inputs))(*inputs)
        table = (FieldC * len(fields))(*fields)
        number = self.library.harness_create(node.op_type.encode(), table, len(fields), given, len(inputs))
        del keep
        return self.check(number)

    def outputs(self, number: int) -> List[TensorC]:
        room = (TensorC * 8)()
        return list(room[: self.library.harness_outputs(number, room, 8)])

    def workspace(self, number: int) -> int:
        return self.library.harness_workspace(number)

    def enqueue(
        self, number: int, context: int, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> None:
        ins, outs = (ctypes.c_void_p * 16)(*inputs), (ctypes.c_void_p * 16)(*outputs)
        status = self.library.harness_enqueue(number, context, ins, outs, workspace, stream)
        if status:
            raise HarnessError(self.error() or self.message())

    def clear(self) -> None:
        """Destroy every plugin."""
        self.library.harness_clear()


def tensor(kind: int, shape: Sequence[int], is_open: bool = False) -> TensorC:
    return TensorC(kind, len(shape), int(is_open), (ctypes.c_int64 * 8)(*shape))


def shape_of(item: TensorC) -> Tuple[int, ...]:
    return tuple(item.dims[: item.rank])


def nbytes(item: TensorC) -> int:
    return int(np.prod(shape_of(item))) * DTYPES[item.type].itemsize


def _fields(node: Any) -> Tuple[List[FieldC], List[Any]]:
    """Attributes as NVIDIA's parser makes fields of them: int32, float32, text with its NUL."""
    fields, keep = [], []
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.STRING:
            data: Any = ctypes.create_string_buffer(value)
            kind, length = FIELD_CHAR, len(value) + 1
        elif attribute.type == AttributeProto.INT:
            data, kind, length = (ctypes.c_int32 * 1)(value), FIELD_INT, 1
        else:
            values = list(value) if attribute.type == AttributeProto.FLOATS else [value]
            data, kind, length = (ctypes.c_float * len(values))(*values), FIELD_FLOAT, len(values)
        keep.append(data)
        fields.append(FieldC(attribute.name.encode(), ctypes.cast(data, ctypes.c_void_p), kind, length))
    return fields, keep


class Network:
    """A stripped refiner: every node a plugin but Concat, every tensor an allocation of its exact size."""

    def __init__(self, harness: Harness, context: cuda.Context, model: Any, open_rows: bool = False) -> None:
        self.harness, self.context, self.model = harness, context, model
        self.tensors: Dict[str, TensorC] = {}
        self.buffers: Dict[str, cuda.Buffer] = {}
        self.numbers: Dict[str, int] = {}
        self.scratch: Dict[str, cuda.Buffer] = {}
        for constant in model.graph.initializer:
            array = numpy_helper.to_array(constant)
            kind = {"f": KFLOAT, "i": KINT32}[array.dtype.kind]
            self.add(constant.name, tensor(kind, array.shape))
            self.buffers[constant.name] = cuda.upload_now(context, np.ascontiguousarray(array))
        for port in model.graph.input:
            kind = {1: KFLOAT, 6: KINT32}[port.type.tensor_type.elem_type]
            self.add(port.name, tensor(kind, [d.dim_value for d in port.type.tensor_type.shape.dim]))
        for node in model.graph.node:
            inputs = [self.tensors[name] for name in node.input]
            if node.op_type == "Concat":
                shape = (shape_of(inputs[0])[0], sum(shape_of(item)[1] for item in inputs))
                self.add(node.output[0], tensor(inputs[0].type, shape, bool(inputs[0].open)))
                continue
            number = self.numbers[node.name] = harness.create(node, inputs)
            self.scratch[node.name] = context.alloc(harness.workspace(number))
            made = harness.outputs(number)
            assert len(made) == len(node.output)
            for name, item in zip(node.output, made):
                # A capacity is a constant; as a test it may be hidden from the readers of coords, maps and rows.
                item.open = int(bool(item.open) or (open_rows and item.rank == 2))
                self.add(name, item)

    def add(self, name: str, item: TensorC) -> None:
        self.tensors[name] = item
        self.buffers[name] = self.context.alloc(nbytes(item))

    def set(self, stream: cuda.Stream, name: str, array: np.ndarray) -> None:
        """Upload an input; bytes are rounded up to words."""
        data = np.zeros(nbytes(self.tensors[name]), np.uint8)
        raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        assert len(data) - 4 < len(raw) <= len(data), name
        data[: len(raw)] = raw
        stream.upload(self.buffers[name].address, data)
        stream.synchronize()

    def get(self, stream: cuda.Stream, name: str) -> np.ndarray:
        item = self.tensors[name]
        array = np.zeros(shape_of(item), DTYPES[item.type])
        stream.download(array, self.buffers[name].address)
        stream.synchronize()
        return array

    def enqueue(self, stream: cuda.Stream, context: int = 0) -> None:
        """All nodes on one stream, as an execution context does."""
        for node in self.model.graph.node:
            if node.op_type == "Concat":
                self.concat(stream, node)
                continue
            ins = [self.buffers[name].address for name in node.input]
            outs = [self.buffers[name].address for name in node.output]
            scratch = self.scratch[node.name].address
            self.harness.enqueue(self.numbers[node.name], context, ins, outs, scratch, stream.handle)

    def concat(self, stream: cuda.Stream, node: Any) -> None:
        target, item = self.buffers[node.output[0]], self.tensors[node.output[0]]
        size = DTYPES[item.type].itemsize
        rows, width = shape_of(item)
        start = 0
        for name in node.input:
            columns = shape_of(self.tensors[name])[1]
            source = self.buffers[name].address
            stream.copy_rows(target.address + start * size, width * size, source, columns * size, columns * size, rows)
            start += columns
