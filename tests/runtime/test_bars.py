from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
for name in ("onnx", "onnxruntime", "PIL.Image", "av"):
    pytest.importorskip(name)
import gpu_toy  # noqa: E402
from native_net import FRAME  # noqa: E402

from crispseg.runtime import pipeline  # noqa: E402
from crispseg.runtime.bars import BarCells, bar_cells, make_certain  # noqa: E402
from crispseg.runtime.geometry import Placement, placement  # noqa: E402

RULES = ("nearest", "bilinear", "bilinear_corners")


def enlarge(low, size, rule):
    """float64 [1,C,h,w] -> [1,C,H,W] by the bundle's rules, with torch."""
    low = torch.from_numpy(low)
    if rule == "nearest":
        return low[:, :, torch.arange(size[0]) * low.shape[2] // size[0]][
            :, :, :, torch.arange(size[1]) * low.shape[3] // size[1]
        ].numpy()
    mode = {"mode": "bilinear", "align_corners": rule == "bilinear_corners"}
    return torch.nn.functional.interpolate(low, size, **mode).numpy()


@st.composite
def cases(draw):
    canvas = draw(st.tuples(st.integers(8, 60), st.integers(8, 60)))
    frame = draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    low = (draw(st.integers(2, canvas[0])), draw(st.integers(2, canvas[1])))
    return canvas, frame, low, draw(st.sampled_from(RULES))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_no_pixel_of_the_frame_reads_them_and_every_other_cell_is_read(case):
    canvas, frame, low, rule = case
    place = placement(frame, canvas, "letterbox")
    cells = bar_cells(place, low, rule)
    inside = np.s_[place.top : place.top + place.height, place.left : place.left + place.width]
    values = np.random.default_rng(0).normal(size=(1, 2, *low))
    changed = values.copy()
    make_certain(changed, cells)
    before, after = enlarge(values, canvas, rule)[0, 0], enlarge(changed, canvas, rule)[0, 0]
    assert np.abs(before[inside] - after[inside]).max() < 1e-9
    # Two cells more on any side reach the frame: the last one read may have a weight of 0.
    for side, axis in (("top", 0), ("bottom", 0), ("left", 1), ("right", 1)):
        more = {name: getattr(cells, name) for name in ("top", "bottom", "left", "right")}
        more[side] = min(more[side] + 2, low[axis])
        wider = values.copy()
        make_certain(wider, BarCells(**more))
        assert np.abs(before[inside] - enlarge(wider, canvas, rule)[0, 0][inside]).max() > 1e-9


def test_a_frame_without_bars_changes_nothing():
    cells = bar_cells(Placement((48, 64), (48, 64), 0, 0, 48, 64), (12, 16), "bilinear")
    assert cells == BarCells(0, 0, 0, 0)
    assert not cells
    logits = np.random.default_rng(1).normal(size=(1, 3, 12, 16)).astype(np.float32)
    same = logits.copy()
    make_certain(same, cells)
    assert np.array_equal(same, logits)


@pytest.mark.parametrize("size", [(20, 64), (48, 40)], ids=str)
def test_bars_take_no_capacity(tmp_path, monkeypatch, size):
    bundle = gpu_toy.write(tmp_path / "b")
    frame = gpu_toy.picture(1, *size)
    with pipeline.open_pipeline(bundle, threads=1) as pipe:
        result = pipe.run(frame, ("labels", "active"))
    monkeypatch.setattr(pipeline, "make_certain", lambda logits, cells: None)
    with pipeline.open_pipeline(bundle, threads=1) as pipe:
        before = pipe.run(frame, ("labels", "active"))
    assert np.array_equal(result.active, before.active)
    place = placement(size, FRAME)
    assert before.count - result.count > 0.1 * (FRAME[0] * FRAME[1] - place.height * place.width)
