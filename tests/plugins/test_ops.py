"""The op contract as data."""

from __future__ import annotations

import pytest

from crispseg.errors import UnsupportedOp
from crispseg.plugins import ops


def test_records_are_whole():
    assert [op.name for op in ops.OPS] == list(ops.BY_NAME)
    assert len(ops.OPS) == 8
    for op in ops.OPS:
        names = [tensor.name for tensor in op.inputs + op.outputs]
        # ScatterLabels and DownMap rename what they pass on, so that a function body can hold both.
        assert len(names) == len(set(names)), op.name
        for attribute in op.attributes:
            if attribute.choices and attribute.default is not None:
                assert attribute.default in attribute.choices


def test_defaults_are_filled_in_and_bytes_are_text():
    found = ops.check_attributes("DownMap", {"height": 4, "width": 5, "extent": b"image", "plugin_version": b"1"})
    assert found == {"height": 4, "width": 5, "extent": "image"}
    assert ops.check_attributes("SparseConv2d", {}) == {"relu": 0, "x_scale": 0.0}


@pytest.mark.parametrize("value", [True, 1.0, "3", 2**31, -1, None])
def test_an_int_is_a_non_negative_int32(value):
    with pytest.raises(UnsupportedOp, match="height"):
        ops.check_attributes("SubmanifoldMap", {"height": value, "width": 5})


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan"), True, "1"])
def test_x_scale_is_a_finite_number_from_0(value):
    with pytest.raises(UnsupportedOp, match="x_scale"):
        ops.check_attributes("SparseConv2d", {"x_scale": value})


def test_features():
    assert ops.parse_features("rgb,xy,p, p>0.5") == (("rgb", None), ("xy", None), ("p", None), ("p", 0.5))
    assert ops.feature_width("rgb,xy,p,p>0.5", 19) == 3 + 2 + 19 + 19
    for text in ("", "rgb,", "q", "p>", "p>nan", "x>1", "p>1>2"):
        with pytest.raises(UnsupportedOp):
            ops.parse_features(text)


@pytest.mark.parametrize(("size", "below"), [((5, 9), (2, 4)), ((4, 4), (1, 1)), ((2, 1), (0, 0)), ((0, 0), (0, 0))])
def test_coarser(size, below):
    assert ops.coarser(*size) == below


def test_connections():
    ins = ["x", "", "n", "w", "", "", "s", "t"]
    roles, outputs = ops.check_connections("SparseConv2d", ins, ["", "z"], {})
    assert roles["scale1"] == "s"
    assert outputs == {"y": "", "z1": "z", "z2": ""}
    for bad in (ins[:7], ins[:4], [*ins, "s2"]):
        with pytest.raises(UnsupportedOp):
            ops.check_connections("SparseConv2d", bad, ["", "z"], {})
