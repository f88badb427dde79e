"""Every base of the SFNet, SRNet and SANet family as a graph: golden logits, allowed operators, measured traps."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import torch.nn.functional as F  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_bases  # noqa: E402

from crispseg.errors import UnsupportedOp  # noqa: E402
from crispseg.export import dense  # noqa: E402
from crispseg.export.sources import tensorrt_gaps  # noqa: E402
from crispseg.models.bases import build_base, sanet  # noqa: E402

torch.set_num_threads(1)

SIZE = (72, 120)
ALLOWED = {
    *("Conv", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Sub", "Mul", "Pow", "MatMul", "Resize"),
    *("Concat", "Slice", "Transpose", "Reshape", "ReduceMean", "ReduceMax", "ReduceSum", "Sigmoid", "GridSample"),
    *("InstanceNormalization", "DepthToSpace"),
}


def run(model, image):
    session = ort.InferenceSession(dense.to_bytes(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def nodes(model, kind):
    return [n for n in model.graph.node if n.op_type == kind]


def attributes(node):
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def constants(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


LARGE = ("sfnet_r101", "srnet_r101")
ARCHS = [pytest.param(a, marks=pytest.mark.slow if a in LARGE else ()) for a in fill_bases.NAMES]


@pytest.mark.parametrize("arch", ARCHS)
def test_graph_gives_the_golden_logits(arch):
    net, _, _ = fill_bases.network(arch)
    model = dense.export_dense(net, height=SIZE[0], width=SIZE[1])
    assert {n.op_type for n in model.graph.node} <= ALLOWED
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert tensorrt_gaps(model) == {}
    x, _ = fill_bases.image(arch, *SIZE)
    result = dense.parity(net, model, torch.from_numpy(x))
    assert result["max_error_std"] < 2e-5
    logits = torch.from_numpy(run(model, x))
    if logits.shape[2:] != SIZE:
        logits = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    extra = fill_bases.manifest(arch)["extra_72x120"]
    found = logits.numpy().reshape(-1)[extra["flat_index"]]
    assert np.abs(found - np.array(extra["value"])).max() <= 2e-4 * extra["std"]


@pytest.mark.parametrize("name", ["sfnet-dfv1", "sfnet-lite-stdc1", "sanet"])
@pytest.mark.parametrize("size", [(50, 70), (33, 95)])
def test_sizes_that_no_stride_divides(name, size):
    torch.manual_seed(0)
    net = build_base(name, 5).eval()
    model = dense.export_dense(net, height=size[0], width=size[1])
    assert dense.parity(net, model)["max_error_std"] < 1e-4


@pytest.fixture(scope="module")
def lite():
    """SFNet-Lite on STDC: pooling pyramid, gate, two warps, strided blocks."""
    net, _, _ = fill_bases.network("sfnet_lite_stdc1")
    return dense.export_dense(net, height=96, width=160)


@pytest.fixture(scope="module")
def shuffled():
    net, _, _ = fill_bases.network("sanet_c11")
    return dense.export_dense(net, height=96, width=160)


class TestTraps:
    """Each of these was measured to change the logits, or to fail, in some exporter or runtime."""

    def test_pooling_is_two_constant_matrices(self, lite, shuffled):
        for model, count in ((lite, 6), (shuffled, 8)):
            known = constants(model)
            products = nodes(model, "MatMul")
            assert len(products) == count
            for node in products:
                (name,) = [n for n in node.input if n in known]
                matrix = known[name] if name == node.input[0] else known[name].T
                np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
        for kind in ("Gather", "GatherND", "ScatterND", "Where"):
            assert not nodes(lite, kind)
            assert not nodes(shuffled, kind)

    def test_reductions_carry_their_axes_as_attributes(self, lite):
        # As inputs (opset 18), TensorRT 8.5 and 8.6 do not see them and reduce over everything.
        found = nodes(lite, "ReduceMean") + nodes(lite, "ReduceMax")
        assert len(found) == 4
        for node in found:
            assert len(node.input) == 1
            assert attributes(node)["axes"] == [1]

    def test_grid_sample_by_its_name_before_opset_20(self, lite):
        # At opset 20 the mode is called "linear", which TensorRT reads as nearest.
        found = nodes(lite, "GridSample")
        assert len(found) == 2
        for node in found:
            assert attributes(node) == {"mode": "bilinear", "padding_mode": "zeros", "align_corners": 0}

    def test_grids_are_constants(self, lite):
        assert not {n.op_type for n in lite.graph.node} & {
            "Shape",
            "ConstantOfShape",
            "Expand",
            "Tile",
            "Cast",
            "Range",
        }
        # One for each size of map that is warped: stride 32 and stride 4.
        assert [list(v.shape) for v in constants(lite).values()].count([1, 24, 40, 2]) == 2

    def test_grid_sample_is_the_fast_form(self, lite):
        """Corners that are not aligned: ONNX Runtime's kernel for aligned ones is five times slower on a CPU."""
        assert all(attributes(node)["align_corners"] == 0 for node in nodes(lite, "GridSample"))

    def test_grids_and_pools_stay_single_precision(self, lite):
        half = dense.to_half_weights(lite)
        kinds = {t.name: t.data_type for t in half.graph.initializer}
        for node in nodes(half, "Add") + nodes(half, "Mul") + nodes(half, "MatMul"):
            for name in node.input:
                assert kinds.get(name, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
        assert onnx.TensorProto.FLOAT16 in kinds.values()

    def test_average_pools_count_their_padding(self, lite):
        found = nodes(lite, "AveragePool")
        assert len(found) == 3
        assert all(attributes(node)["count_include_pad"] == 1 for node in found)

    def test_epsilon_of_the_cubic_mean_survives(self, shuffled):
        known = constants(shuffled)
        added = [known[n] for node in nodes(shuffled, "Add") for n in node.input if n in known]
        assert sum(v.size == 1 and float(v.reshape(-1)[0]) == np.float32(1e-12) for v in added) == 4

        class Mean(sanet.GeM):
            def forward(self, x):
                return super().forward(x[:, :2] * 0)

        model = dense.export_dense(Mean(), height=8, width=8)
        np.testing.assert_allclose(run(model, np.ones((1, 3, 8, 8), np.float32)), 1e-4, rtol=1e-4)

    def test_cubic_mean_stays_single_precision(self, shuffled):
        from crispseg.export.passes.fp16 import to_fp16

        half = dense._copy(shuffled)
        kept = to_fp16(half).kept
        cubes = [n.name for n in shuffled.graph.node if ".avg_pool" in n.name]
        assert len(cubes) == 16  # cube, mean, epsilon, root; two fusions of two maps
        assert set(cubes) <= set(kept)
        small = dense.export_dense(sanet.GeM(), height=8, width=8)
        to_fp16(small)
        x = np.full((1, 3, 8, 8), 80, np.float32)
        x[:, 1] = 1e-3
        np.testing.assert_allclose(run(small, x).reshape(-1), [80, 1e-3, 80], rtol=2e-3)

    def test_pixels_are_shuffled_channel_first(self, shuffled):
        (node,) = nodes(shuffled, "DepthToSpace")
        assert attributes(node) == {"mode": "CRD", "blocksize": 8}

    def test_contexts_are_resized_nearest_by_floor(self, shuffled):
        found = [attributes(n) for n in nodes(shuffled, "Resize")]
        nearest = [a for a in found if a["mode"] == "nearest"]
        assert len(nearest) == 4
        for a in nearest:
            assert (a["coordinate_transformation_mode"], a["nearest_mode"]) == ("asymmetric", "floor")
        assert all(a["coordinate_transformation_mode"] == "align_corners" for a in found if a["mode"] == "linear")

    def test_reasoning_is_one_sum(self):
        torch.manual_seed(0)
        from crispseg.models.bases.srnet import SRHead

        head = SRHead(3, 5).eval()
        model = dense.export_dense(head, height=9, width=15)
        assert not nodes(model, "MatMul")
        assert len(nodes(model, "ReduceSum")) == 1
        assert len(nodes(model, "Reshape")) <= 4
        assert dense.parity(head, model)["max_error_std"] < 1e-4


def test_sums_over_all_pixels_survive_half_precision():
    """At 1024x2048 the dot products of SRNet reach 1e5; a larger weight gives such values on a small map."""
    from crispseg.export.passes.fp16 import to_fp16

    net, _, _ = fill_bases.network("srnet_r50")
    with torch.no_grad():
        for conv in (net.head.module.p, net.head.module.g):
            conv.weight.mul_(12)
    model = dense.export_dense(net, height=96, width=160)
    x = torch.from_numpy(fill_bases.image("srnet_r50", 96, 160)[0])
    named = dense._copy(model)
    converted = to_fp16(named)
    assert converted.kept["head.module.conv_adj/Conv"] == "asked for"
    assert "head.module.p/Conv" not in converted.kept
    assert "head.final.0/Conv" not in converted.kept
    assert dense.parity(net, named, x)["max_error_std"] < 2e-2
    unnamed = dense._copy(model)
    del unnamed.metadata_props[:]
    to_fp16(unnamed)
    assert not dense.parity(net, unnamed, x)["max_error_std"] < 0.5


class Resized(nn.Module):
    def __init__(self, size, **options):
        super().__init__()
        self.size, self.options = size, options

    def forward(self, x):
        return F.interpolate(x, size=self.size, **self.options)


BILINEAR, BICUBIC, NEAREST = {"mode": "bilinear"}, {"mode": "bicubic"}, {"mode": "nearest"}


@pytest.mark.parametrize("size", [(12, 20), (13, 31), (5, 7), (3, 40), (1, 1)])
@pytest.mark.parametrize(
    ("options", "mode", "coordinates"),
    [
        ({**BILINEAR, "align_corners": True}, "linear", "align_corners"),
        ({**BILINEAR, "align_corners": False}, "linear", "half_pixel"),
        ({**BICUBIC, "align_corners": True}, "cubic", "align_corners"),
        ({**BICUBIC, "align_corners": False}, "cubic", "half_pixel"),
        (NEAREST, "nearest", "asymmetric"),
    ],
)
def test_resize_keeps_its_coordinates(size, options, mode, coordinates):
    net = Resized(size, **options)
    model = dense.export_dense(net, height=6, width=10)
    if size == (1, 1) and not nodes(model, "Resize"):
        pytest.fail("a resize to one pixel must stay a Resize")
    (node,) = nodes(model, "Resize")
    found = attributes(node)
    assert found["mode"] == mode
    assert found["coordinate_transformation_mode"] in (coordinates, f"pytorch_{coordinates}")
    assert dense.parity(net, model)["max_error"] < 2e-5
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 3, *size]


def test_an_antialiased_resize_is_refused():
    with pytest.raises(UnsupportedOp, match="does not export to opset 17"):
        dense.export_dense(Resized((3, 5), mode="bilinear", antialias=True), height=6, width=10)
