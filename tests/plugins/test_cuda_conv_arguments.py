"""What the CUDA convolution takes: arguments that it refuses by name, and weights packed for a type."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest
from cuda_conv_cases import F16, F32, I8, NAMES, Gpu, pack

from crispseg.plugins import cuda_loader


@pytest.fixture(scope="module")
def gpu(kernel_image):
    gpu = Gpu(kernel_image)
    yield gpu
    gpu.close()


def valid() -> cuda_loader.Conv:
    c = cuda_loader.Conv()
    c.type, c.d_x, c.ldx, c.d_count, c.capacity, c.K, c.cin, c.cout = F16, 256, 16, 256, 0, 1, 16, 16
    c.d_weight, c.y_type, c.d_y, c.ldy = 256, F16, 256, 16
    return c


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(type=3), "type 3, expected"),
        (dict(K=0), "K = 0"),
        (dict(K=33), "K = 33"),
        (dict(K=9), "no kernel map"),
        (dict(cin=0), "cin = 0"),
        (dict(cout=1 << 20), "cout = 1048576"),
        (dict(capacity=-1), "capacity -1"),
        (dict(d_x=None), "x, weight or count is NULL"),
        (dict(d_count=None), "count is NULL"),
        (dict(ldx=8), "rows of x are 8 elements apart, expected at least 16"),
        (dict(ldx=20), "multiples of 16 bytes"),
        (dict(ldx=1 << 24), "less than 2^24"),
        (dict(d_x=264), "multiples of 16 bytes"),
        (dict(cin=17), "expected at least 32"),
        (dict(d_weight=260), "weights"),
        (dict(d_y=None), "no output"),
        (dict(ldy=8), "rows of y"),
        (dict(d_y=258), "multiples of 16 bytes"),
        (dict(y_type=7), "type 7 of y"),
        (dict(d_dequant=256), "dequant"),
        (dict(type=I8, ldx=32), "dequant"),
        (dict(type=I8, ldx=32, d_dequant=256, y_type=I8), "scale of the int8 output y is 0"),
        (dict(d_residual=512, ldr=16, residual_type=I8), "int8 residual"),
        (dict(d_residual=256, ldr=16, residual_type=F32), "share memory"),
        (dict(d_z=(256, 0), ldz=(16, 0), z_type=(F16, 0)), "z1 without scale or shift"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, dict) else None,
)
def test_wrong_arguments_are_named(gpu, change, message):
    c = valid()
    assert gpu.library.csg_sparse_conv(gpu.context, gpu.stream.handle, byref(c)) == 0
    for name, value in change.items():
        field = getattr(c, name)
        if isinstance(value, tuple):
            field[:] = value
        else:
            setattr(c, name, value)
    assert gpu.library.csg_sparse_conv(gpu.context, gpu.stream.handle, byref(c)) == cuda_loader.BAD_ARGUMENT
    assert message in gpu.error()


def test_a_small_workspace_is_refused(gpu):
    c = valid()
    c.capacity, c.cin, c.cout, c.ldx, c.ldy = 100, 1024, 128, 1024, 128
    need = gpu.library.csg_conv_workspace(gpu.context, byref(c))
    if gpu.library.csg_compute_capability(gpu.context) < 80:
        assert need == 0  # no shared tiles
        return
    assert need > 0
    c.d_workspace, c.workspace_bytes = 256, need - 1
    assert gpu.library.csg_sparse_conv(gpu.context, gpu.stream.handle, byref(c)) == cuda_loader.BAD_ARGUMENT
    assert f"expected {need} bytes" in gpu.error()


@pytest.mark.parametrize("kind", [F32, F16, I8], ids=NAMES.get)
def test_packed_layout(gpu, kind):
    rng = np.random.default_rng(2)
    weight = (rng.standard_normal((3, 70, 18)) * 10.0 ** rng.integers(-8, 4, (3, 70, 18))).astype(np.float32)
    weight[0, :6, 0] = [65504, -65519, 6e-8, 2.9e-8, 5.96e-8 * 1.5, 0]
    weight[:, :, 5] = 0
    packed, scales = pack(gpu.library, kind, weight)
    if kind == F32:
        assert packed.view(np.float32).reshape(weight.shape).tobytes() == weight.tobytes()
        return
    depth = 32 if kind == F16 else 64
    chunks = -(-70 // depth)
    grid = packed.view(np.float16 if kind == F16 else np.int8).reshape(chunks, 3, 32, depth)
    full = np.zeros((3, chunks * depth, 32), np.float32)
    if kind == F16:
        full[:, :70, :18] = weight.astype(np.float16)
    else:
        assert scales[5] == 1
        np.testing.assert_array_equal(np.delete(scales, 5), np.delete(np.abs(weight).max((0, 1)) / np.float32(127), 5))
        full[:, :70, :18] = np.rint(weight / scales)
        assert np.abs(full).max() == 127
    want = full.reshape(3, chunks, depth, 32).transpose(1, 0, 3, 2)
    np.testing.assert_array_equal(grid, want)


@pytest.mark.parametrize(("kind", "bad"), [(F32, np.nan), (F16, np.inf), (F16, 65520.0), (I8, np.nan), (I8, -np.inf)])
def test_weights_that_no_type_holds_are_refused(gpu, kind, bad):
    weight, packed = np.zeros((1, 2, 2), np.float32), np.zeros(1 << 12, np.uint8)
    weight[0, 1, 1] = bad
    status = gpu.library.csg_pack_weight(kind, weight.ctypes.data, 1, 2, 2, packed.ctypes.data, packed.ctypes.data)
    assert status == cuda_loader.BAD_ARGUMENT
    assert "weight 3 is" in gpu.error()
    assert gpu.library.csg_packed_bytes(kind, 0, 2, 2) == 0
    assert gpu.library.csg_pack_weight(kind, None, 1, 2, 2, packed.ctypes.data, packed.ctypes.data) < 0
