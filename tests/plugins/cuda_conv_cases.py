"""What the tests of the CUDA convolution share: a context, poisoned device memory around every matrix, references."""

from __future__ import annotations

import ctypes
from ctypes import byref
from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from op_table import Conv, conv_data, reference_conv

from crispseg.engines import cuda
from crispseg.plugins import cuda_loader

F32, F16, I8 = cuda_loader.F32, cuda_loader.F16, cuda_loader.I8
DTYPE = {F32: np.float32, F16: np.float16, I8: np.int8}
GROUP = {F32: 1, F16: 16, I8: 32}
NAMES = {F32: "fp32", F16: "fp16", I8: "int8"}
QUANT = np.float32(0.37)
POISON = 0xFF  # NaN in fp16 and fp32


class Gpu:
    """A context of the library on the device that is current, and memory that lives as long as it."""

    def __init__(self, image: bytes) -> None:
        self.device = cuda.open_device(0)
        self.stream = self.device.stream()
        self.library = cuda_loader.load()
        self.context = self.library.csg_create(image, len(image))
        assert self.context, self.error()
        self.buffers: List[cuda.Buffer] = []

    def error(self) -> str:
        """Message of the last failed call."""
        return self.library.csg_last_error().decode()

    def call(self, name: str, *arguments: object) -> None:
        """A csg function on the stream; it must succeed."""
        status = getattr(self.library, name)(self.context, self.stream.handle, *arguments)
        assert status == 0, self.error()

    def upload(self, array: np.ndarray) -> int:
        """Address of a copy of the array, followed by poison."""
        self.buffers.append(cuda.upload_now(self.device, np.ascontiguousarray(array)))
        return self.buffers[-1].address

    def alloc(self, nbytes: int) -> int:
        """Address of poisoned memory."""
        return self.upload(np.full(max(1, nbytes), POISON, np.uint8))

    def download(self, address: int, like: np.ndarray) -> np.ndarray:
        """Contents of an array's copy."""
        out = np.empty_like(like)
        if out.nbytes:
            self.stream.download(out, address)
        self.stream.synchronize()
        return out

    def release(self) -> None:
        """Free all memory."""
        self.stream.synchronize()
        for buffer in self.buffers:
            buffer.close()
        self.buffers.clear()

    def close(self) -> None:
        """Free the context too."""
        self.release()
        self.library.csg_destroy(self.context)


@dataclass
class Run:
    """How a convolution is called."""

    type: int = F16
    y_type: int = F16
    z_types: Tuple[int, int] = (F16, F32)
    residual_type: int = F16
    spare: int = 3  # capacity beyond the count; these rows are poisoned
    order: Optional[np.ndarray] = None
    in_place: bool = False
    workspace: bool = True
    portable: int = 0  # 1: kernels of 7.2, 2: of 8.0, 0: the fastest
    count: Optional[int] = None  # fewer rows than the map has
    shifted: bool = False  # bias, scale and shift at addresses that are no multiple of 16


def pack(library: ctypes.CDLL, kind: int, weight: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """(packed bytes, scales) of float [K,cin,cout]."""
    taps, cin, cout = weight.shape
    packed = np.full(library.csg_packed_bytes(kind, taps, cin, cout), POISON, np.uint8)
    scales = np.zeros(cout, np.float32)
    weight = np.ascontiguousarray(weight, np.float32)
    status = library.csg_pack_weight(
        kind, weight.ctypes.data, taps, cin, cout, packed.ctypes.data, scales.ctypes.data if kind == I8 else None
    )
    assert status == 0, library.csg_last_error().decode()
    return packed, scales


def of_type(data: Dict[str, np.ndarray], kind: int) -> Dict[str, np.ndarray]:
    """The same inputs, representable in the type: x int8 in int8, everything else float32."""
    data = dict(data)
    if kind == F16:
        data["x"] = data["x"].astype(np.float16).astype(np.float32)
    elif kind == I8:
        data["x"] = np.clip(np.rint(data["x"] * 40), -127, 127).astype(np.int8)
    return data


def typed_data(conv: Conv, kind: int) -> Dict[str, np.ndarray]:
    """Inputs of a row of the op table, representable in the type."""
    return of_type(conv_data(conv), kind)


def _matrix(values: np.ndarray, dtype: type, spare: int, pad: int, group: int) -> np.ndarray:
    """[rows + spare, ld] with the values, zeros up to the next multiple of ``group`` columns, poison elsewhere."""
    rows, columns = values.shape
    size = np.dtype(dtype).itemsize
    padded = -(-columns // group) * group
    multiple = 1 if dtype == np.float32 else 16 // size
    ld = -(-(padded + pad) // multiple) * multiple
    block = np.full((rows + spare) * ld * size, POISON, np.uint8).view(dtype).reshape(rows + spare, ld)
    block[:rows, :padded] = 0
    block[:rows, :columns] = values
    return block


def run_conv(gpu: Gpu, conv: Conv, data: Dict[str, np.ndarray], how: Run) -> List[Optional[np.ndarray]]:
    """[y, z1, z2] as stored (None where absent). Nothing outside their rows and columns may change."""
    table = data.get("map")
    rows = len(data["x"]) if table is None else len(table)
    count = rows if how.count is None else how.count
    capacity = rows + how.spare
    x = _matrix(data["x"], DTYPE[how.type], 2, conv.pad, GROUP[how.type])
    packed, scales = pack(gpu.library, how.type, data["weight"])
    c = cuda_loader.Conv()
    c.type, c.d_x, c.ldx = how.type, gpu.upload(x), x.shape[1]
    if table is not None:
        garbage = np.full((how.spare, table.shape[1]), 1 << 29, np.int32)
        c.d_map = gpu.upload(np.concatenate([table, garbage]))
    if how.order is not None:
        c.d_order = gpu.upload(np.concatenate([how.order, np.full(how.spare, 1 << 29)]).astype(np.int32))
    c.d_count = gpu.upload(np.array([count], np.int32))
    c.capacity, c.K, c.cin, c.cout = capacity, data["weight"].shape[0], conv.cin, conv.cout
    c.d_weight = gpu.upload(packed)
    c.relu, c.portable = int(conv.relu), int(how.portable)

    def channels(values: np.ndarray) -> int:
        values = np.asarray(values, np.float32)
        return (
            gpu.upload(np.concatenate([[np.nan], values]).astype(np.float32)) + 4 if how.shifted else gpu.upload(values)
        )

    if conv.bias:
        c.d_bias = channels(data["bias"])
    if how.type == I8:
        c.d_dequant = channels(scales * np.float32(0.02))
    residual = _matrix(data["residual"], DTYPE[how.residual_type], how.spare, conv.pad, 1)
    blocks: List[Tuple[int, np.ndarray, np.ndarray]] = []

    def output(kind: int) -> Tuple[int, int]:
        block = _matrix(np.zeros((capacity, conv.cout)), DTYPE[kind], 0, conv.pad, 1)
        block.view(np.uint8)[:] = POISON
        start = block
        if how.in_place and not blocks:
            block, start = residual, residual
        blocks.append((gpu.upload(block), block, start))
        return blocks[-1][0], block.shape[1]

    if conv.y:
        c.y_type, c.y_quant = how.y_type, QUANT
        c.d_y, c.ldy = output(how.y_type)
    if conv.residual:
        c.residual_type, c.ldr = how.residual_type, residual.shape[1]
        c.d_residual = blocks[0][0] if how.in_place else gpu.upload(residual)
    for i in range(conv.outputs):
        c.z_type[i], c.z_quant[i] = how.z_types[i], QUANT
        c.d_z[i], c.ldz[i] = output(how.z_types[i])
        c.d_scale[i], c.d_shift[i] = channels(data[f"scale{i}"]), channels(data[f"shift{i}"])
    if how.workspace:
        c.workspace_bytes = gpu.library.csg_conv_workspace(gpu.context, byref(c))
        c.d_workspace = gpu.alloc(c.workspace_bytes) if c.workspace_bytes else None
    gpu.call("csg_sparse_conv", byref(c))
    results: List[Optional[np.ndarray]] = [] if conv.y else [None]
    for address, block, start in blocks:
        after = gpu.download(address, block)
        written = np.zeros(block.shape, bool)
        at = slice(count) if how.order is None else how.order[:count]
        written[at, : conv.cout] = True
        assert (after.view(np.uint8) == start.view(np.uint8)).reshape(*block.shape, -1).all(-1)[~written].all()
        results.append(after[: len(residual) - how.spare, : conv.cout].copy())
    gpu.release()
    return results


def expected(conv: Conv, data: Dict[str, np.ndarray], how: Run) -> List[np.ndarray]:
    """float64 of inputs rounded to the type; for int8 the exact float32 of an integer product (and of its epilogue)."""
    data = dict(data)
    residual = data["residual"].astype(DTYPE[how.residual_type]).astype(np.float32)
    data["residual"] = residual
    if how.type != I8:
        data["weight"] = data["weight"].astype(DTYPE[how.type])
        return reference_conv(data, conv)
    weight = data["weight"]
    scales = (np.abs(weight).max((0, 1)) / np.float32(127)).astype(np.float32)
    data["weight"] = np.clip(np.rint(weight / scales), -127, 127)
    plain = replace(conv, bias=False, residual=False, relu=False, outputs=0, y=True)
    v = reference_conv(data, plain)[0].astype(np.int64).astype(np.float32) * (scales * np.float32(0.02))
    if conv.bias:
        v = v + data["bias"]
    if conv.residual:
        v = v + residual
    if conv.relu:
        v = np.maximum(v, 0)
    return [v] + [np.maximum(v * data[f"scale{i}"] + data[f"shift{i}"], 0) for i in range(conv.outputs)]


def stored(want: np.ndarray, kind: int) -> np.ndarray:
    """The bits an exact result takes in an output of this type."""
    if kind == I8:
        return np.clip(np.rint(want / QUANT), -127, 127).astype(np.int8)
    return want.astype(DTYPE[kind])


def assert_right(conv: Conv, how: Run, got: Sequence[Optional[np.ndarray]], want: Sequence[np.ndarray]) -> None:
    """int8 exactly; fp16 arithmetic within 2e-3 of the largest value, fp32 within 1e-5."""
    kinds = (how.y_type, *how.z_types)
    for have, exact, kind in zip(got, want, kinds):
        if have is None or not have.size:
            continue
        if how.type == I8:
            np.testing.assert_array_equal(have, stored(exact, kind))
            continue
        limit = 1e-5 if how.type == F32 and kind == F32 else 2e-3 if kind == F16 else 1e-4
        largest = max(np.abs(exact).max(), 1e-3)
        if kind == I8:
            error = np.abs(have - np.clip(exact / QUANT, -127, 127)).max()
            assert error <= 0.5 + 1e-3 * largest / QUANT
        else:
            assert np.abs(have - exact).max() <= limit * largest


def check(gpu: Gpu, conv: Conv, how: Run, data=None):
    """Run, compare with the reference, return what was stored."""
    data = typed_data(conv, how.type) if data is None else data
    got = run_conv(gpu, conv, data, how)
    assert_right(conv, how, got, expected(conv, data, how))
    return got


def same_bits(a, b) -> bool:
    """Whether two lists of outputs agree to the last bit."""
    return all((x is None and y is None) or x.tobytes() == y.tobytes() for x, y in zip(a, b))


def random_data(rows: int, cin: int, cout: int, taps: int = 9, present: float = 0.6, inputs: int = 0):
    """Inputs with a random kernel map [rows, taps] of which the share ``present`` is there."""
    rng = np.random.default_rng(rows * 1000003 + cin * 1009 + cout)
    inputs = inputs or max(rows, 1)
    table = rng.integers(0, inputs, (rows, taps)).astype(np.int32)
    table[rng.random(table.shape) > present] = -1
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    data = {"map": table, "x": normal(inputs, cin), "weight": normal(taps, cin, cout), "bias": normal(cout)}
    data["residual"] = normal(rows, cout)
    for i in range(2):
        data[f"scale{i}"], data[f"shift{i}"] = normal(cout), normal(cout)
    return data
