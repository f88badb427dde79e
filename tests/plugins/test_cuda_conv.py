"""The CUDA convolution on the emulated device: every kernel family against float64 (fp32, fp16) and integers (int8)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ctypes import byref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cuda_conv_cases import (
    F16,
    F32,
    I8,
    Gpu,
    Run,
    assert_right,
    check,
    expected,
    of_type,
    pack,
    random_data,
    run_conv,
    same_bits,
    typed_data,
)
from op_table import CONVS, FULL, KINDS, Conv

from crispseg.plugins import cuda_loader

FAMILIES = {
    "fp16-mma": dict(type=F16),
    "int8-mma": dict(type=I8, y_type=I8, z_types=(F16, I8)),
    "fp16-wmma": dict(type=F16, portable=True, y_type=F32, z_types=(I8, F16)),
    "int8-wmma": dict(type=I8, portable=True, y_type=F32, z_types=(I8, F16), residual_type=F32),
    "fp32": dict(type=F32, y_type=F32, z_types=(F32, F16), residual_type=F32),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
# The widest row takes most of the time of the table in the reference alone; test_shared_tiles has long sums.
TABLE = [conv for conv in CONVS if conv.cin * conv.cout < 1 << 18]


@pytest.fixture(scope="module")
def gpu(kernel_image):
    gpu = Gpu(kernel_image)
    yield gpu
    gpu.close()


# Every row of the table runs with one family; the slow test takes all of them.
ROTATED = [(conv, list(FAMILIES)[(i + i // len(KINDS)) % len(FAMILIES)]) for i, conv in enumerate(TABLE)]


@pytest.mark.parametrize(("conv", "family"), ROTATED, ids=lambda v: getattr(v, "name", v))
def test_op_table(emulated, gpu, conv, family):
    check(gpu, conv, Run(**FAMILIES[family]))


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("conv", CONVS, ids=lambda c: c.name)
def test_op_table_with_every_family(emulated, gpu, conv, family):
    check(gpu, conv, Run(**FAMILIES[family]))


@every_family
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 127, 128, 129, 257])
def test_row_tiles(emulated, gpu, rows, family):
    how = Run(**FAMILIES[family])
    conv = Conv("-", "-", 20, 19, bias=True)
    check(gpu, conv, how, of_type(random_data(rows, 20, 19), how.type))


@every_family
@pytest.mark.parametrize(
    ("cin", "cout"),
    [
        (1, 1),
        (15, 16),
        (16, 17),
        (17, 32),
        (31, 33),
        (32, 63),
        (33, 64),
        (63, 65),
        (64, 96),
        (65, 128),
        (129, 130),
        (3, 200),
    ],
)
def test_channel_tiles(emulated, gpu, cin, cout, family):
    how = Run(**FAMILIES[family])
    conv = Conv("-", "-", cin, cout, **{**FULL, "outputs": 1})
    check(gpu, conv, how, of_type(random_data(37, cin, cout, taps=3), how.type))


@every_family
@pytest.mark.parametrize("bits", range(16))
def test_every_epilogue(emulated, gpu, bits, family):
    flags = {name: bool(bits >> i & 1) for i, name in enumerate(("bias", "residual", "relu"))}
    outputs = (0, 1, 2)[bits % 3]
    conv = Conv("-", "-", 16, 24, outputs=outputs, y=outputs == 0 or bits < 8, **flags)
    how = Run(**FAMILIES[family])
    data = of_type(random_data(40, 16, 24, taps=2), how.type)
    for residual in (F16, F32):
        how.residual_type = residual
        check(gpu, conv, how, data)


@every_family
def test_channel_arrays_at_any_address(emulated, gpu, family):
    conv = Conv("-", "-", 16, 40, **FULL)
    how = Run(**FAMILIES[family])
    data = of_type(random_data(40, 16, 40, taps=2), how.type)
    aligned = check(gpu, conv, how, data)
    assert same_bits(run_conv(gpu, conv, data, replace(how, shifted=True)), aligned)


@every_family
def test_rows_past_the_count_are_left_alone(emulated, gpu, family):
    conv = Conv("-", "-", 32, 32, **FULL)
    data = random_data(200, 32, 32)
    for count in (0, 1, 127, 128, 150):
        how = Run(**FAMILIES[family], count=count)
        typed = of_type(data, how.type)
        poisoned = np.where(np.arange(200)[:, None] < count, typed["map"], 1 << 29).astype(np.int32)
        got = run_conv(gpu, conv, {**typed, "map": poisoned}, how)
        assert_right(conv, how, [g[:count] for g in got], [w[:count] for w in expected(conv, typed, how)])


@every_family
def test_a_count_above_the_capacity_is_the_capacity(emulated, gpu, family):
    how = Run(**FAMILIES[family], spare=0)
    data = of_type(random_data(70, 16, 16), how.type)
    conv = Conv("-", "-", 16, 16)
    want = run_conv(gpu, conv, data, how)
    rows, how.count = len(data["map"]), 1000
    assert rows == 70
    assert same_bits(run_conv(gpu, conv, data, how), want)


def parity_order(table: np.ndarray) -> np.ndarray:
    """Rows grouped by the taps they have, order kept inside a group."""
    return np.argsort((table >= 0) @ (1 << np.arange(table.shape[1])), kind="stable").astype(np.int32)


@every_family
@pytest.mark.parametrize("sites", ["odd_sizes", "isolated", "one_last"])
def test_order_changes_no_bit(emulated, gpu, sites, family):
    conv = Conv(sites, "up", 64, 40, **FULL)
    how = Run(**FAMILIES[family])
    data = typed_data(conv, how.type)
    raster = check(gpu, conv, how, data)
    how.order = parity_order(data["map"])
    assert same_bits(run_conv(gpu, conv, data, how), raster)
    how.order = np.random.default_rng(3).permutation(len(data["map"])).astype(np.int32)
    assert same_bits(run_conv(gpu, conv, data, how), raster)


@every_family
def test_residual_may_be_the_output(emulated, gpu, family):
    conv = Conv("-", "-", 40, 33, **FULL)
    how = Run(**FAMILIES[family])
    how.y_type = how.residual_type = F32 if how.y_type == F32 else F16
    data = of_type(random_data(150, 40, 33), how.type)
    apart = check(gpu, conv, how, data)
    how.in_place = True
    assert same_bits(run_conv(gpu, conv, data, how), apart)


@every_family
def test_repeats_and_orders_of_threads_give_the_same_bits(emulated, gpu, family):
    conv = Conv("-", "-", 70, 140, **FULL)
    how = Run(**FAMILIES[family])
    data = of_type(random_data(140, 70, 140), how.type)
    first = check(gpu, conv, how, data)
    for order in ((0, 0), (1, 0), (2, 5), (2, 6)):
        emulated.order(*order)
        assert same_bits(run_conv(gpu, conv, data, how), first)


@pytest.mark.parametrize(
    ("kind", "rows", "cin", "cout", "taps"),
    # One tile for several blocks; two tiles, a block with parts of both; four tiles.
    [(F16, 5, 224, 128, 9), (I8, 100, 680, 200, 8), pytest.param(F16, 140, 300, 200, 9, marks=pytest.mark.slow)],
)
def test_shared_tiles(emulated, gpu, kind, rows, cin, cout, taps):
    """Long sums over few rows: two kernels, the same values within rounding, the same bits every time."""
    if gpu.library.csg_compute_capability(gpu.context) < 80:
        pytest.skip("no shared tiles before compute capability 8.0")
    conv = Conv("-", "-", cin, cout, **FULL)
    data = of_type(random_data(rows, cin, cout, taps, present=0.8), kind)
    how = Run(type=kind, y_type=F32, z_types=(F32, F16), residual_type=F32)
    before = emulated.launches()
    whole = check(gpu, conv, replace(how, workspace=False), data)
    assert emulated.launches() == before + 1
    parts = check(gpu, conv, how, data)
    assert emulated.launches() == before + 3
    if kind == I8:
        assert same_bits(parts, whole)
    else:  # another order of additions shows in some bit
        assert not same_bits(parts, whole)
    emulated.order(2, 9)
    order = np.random.default_rng(1).permutation(rows).astype(np.int32)
    changed = run_conv(gpu, conv, data, replace(how, in_place=True, order=order))
    assert same_bits(changed, parts) or rows > 128  # other tiles, other shares


def test_shares_follow_the_count(emulated, gpu):
    conv = Conv("-", "-", 224, 128, bias=True)
    data = of_type(random_data(300, 224, 128), F16)
    how = Run(type=F16, y_type=F32, count=60)
    got = run_conv(gpu, conv, data, how)
    assert_right(conv, how, [got[0][:60]], [expected(conv, data, how)[0][:60]])
    short = {name: value[:60] if name in ("map", "residual") else value for name, value in data.items()}
    assert same_bits([got[0][:60]], run_conv(gpu, conv, short, Run(type=F16, y_type=F32)))


def test_tiles_without_any_tap(emulated, gpu):
    """A tile of rows that have no neighbour at all still gets its bias."""
    for kind in (F16, F32):
        data = of_type(random_data(300, 32, 32), kind)
        data["map"][100:] = -1
        check(gpu, Conv("-", "-", 32, 32, **FULL), Run(type=kind), data)


def test_capture_and_replay(emulated, gpu):
    """The launch is one graph node (two with splits); the count is read when the graph runs."""
    library, stream = gpu.library, gpu.stream
    data = of_type(random_data(90, 32, 32, taps=1, present=1), F16)
    packed, _ = pack(library, F16, data["weight"])
    x, table = gpu.upload(data["x"].astype(np.float16)), gpu.upload(data["map"])
    count, out = gpu.upload(np.array([90], np.int32)), np.zeros((90, 32), np.float32)
    y = gpu.upload(out)
    c = cuda_loader.Conv()
    c.type, c.d_x, c.ldx, c.d_map, c.d_count, c.capacity, c.K, c.cin, c.cout = F16, x, 32, table, count, 90, 1, 32, 32
    c.d_weight, c.y_type, c.d_y, c.ldy = gpu.upload(packed), F32, y, 32
    with stream.capture() as graphs:
        gpu.call("csg_sparse_conv", byref(c))
    assert graphs[0].nodes == 1
    want = data["x"][data["map"][:, 0]] @ data["weight"][0].astype(np.float16).astype(np.float32)
    for rows in (0, 40, 90):
        stream.upload(count, np.array([rows], np.int32))
        stream.fill(y, 0, out.nbytes)
        graphs[0].launch(stream)
        got = gpu.download(y, out)
        assert not got[rows:].any()
        assert np.abs(got[:rows] - want[:rows]).max(initial=0) < 1e-4
    graphs[0].close()
    gpu.release()


PROGRAM = """
import sys
import emulation
from cuda_conv_cases import F16, I8, Gpu, Run, check, of_type, random_data
from op_table import FULL, Conv
gpu = Gpu(emulation.image())
for kind in (F16, I8):
    check(gpu, Conv("-", "-", 40, 150, **FULL), Run(type=kind), of_type(random_data(150, 40, 150), kind))
print(gpu.library.csg_compute_capability(gpu.context))
print(gpu.library.csg_kernel_report(gpu.context).decode())
gpu.close()
"""


@pytest.mark.parametrize("capability", [72, 90])
def test_kernels_of_the_device(emulated, kernel_image, capability):
    """7.2 has no mma kernels and uses wmma; 9.0 has both."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), str(here.parents[1])])
    environment = {**os.environ, "CRISPSEG_EMULATION_CAPABILITY": str(capability), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    number, report = done.stdout.split("\n", 1)
    assert int(number) == capability
    names = {row["name"] for row in json.loads(report)}
    assert "csk_conv_f16_wmma_128x64" in names
    assert ("csk_conv_f16_mma_128x128" in names) == (capability >= 80)
