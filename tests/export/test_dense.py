"""Dense export: fixed size, opset 17, no shape arithmetic, same numbers as torch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import torch.nn.functional as F  # noqa: E402
from onnx import numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

from crispseg.errors import InputError, UnsupportedOp  # noqa: E402
from crispseg.export import dense  # noqa: E402
from crispseg.models.bases.blocks import adaptive_average_pool, flow_warp, resize, spatial  # noqa: E402

torch.set_num_threads(1)


class Net(nn.Module):
    """Everything the bases do that exporters stumble over, in a few channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(24, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Dropout2d(0.5))
        self.flow = nn.Conv2d(24, 2, 3, padding=1)
        self.last = nn.Conv2d(24, 5, 1)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.2)
                m.running_var.uniform_(0.5, 2)

    def forward_logits(self, x):
        fine = self.stem(x)
        deep = self.deep(fine)
        deep = deep + resize(adaptive_average_pool(deep, (3, 6)), spatial(deep))
        size = fine.shape[2:]  # left as traced values on purpose: the exporter then writes Shape nodes
        up = F.interpolate(deep, size=size, mode="bilinear", align_corners=False)
        return self.last(up + flow_warp(deep, self.flow(fine)))

    def forward(self, x):
        return F.interpolate(self.forward_logits(x), size=x.shape[2:], mode="bilinear", align_corners=True)


@pytest.fixture(scope="module")
def net():
    return Net().train()


@pytest.fixture(scope="module")
def model(net):
    return dense.export_dense(net, height=40, width=56)


def _shape(value):
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def test_graph_is_static_standard_and_small(model):
    kinds = [n.op_type for n in model.graph.node]
    assert not {"Shape", "ConstantOfShape", "Range", "Gather", "Constant", "Cast", "Identity"} & set(kinds)
    assert "BatchNormalization" not in kinds
    assert "Dropout" not in kinds
    assert kinds.count("GridSample") == 1
    assert {n.domain for n in model.graph.node} == {""}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert _shape(model.graph.input[0]) == [1, 3, 40, 56]
    assert _shape(model.graph.output[0]) == [1, 5, 20, 28]
    assert not model.graph.value_info
    onnx.checker.check_model(model, full_check=True)


def test_names_are_readable_and_unique(model):
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    assert "stem.0/Conv" in names
    weights = [t.name for t in model.graph.initializer]
    assert {"stem.0.weight", "stem.0.bias", "last.weight"} <= set(weights)
    assert not [n for n in names + weights if n.startswith(("onnx::", "/"))]


@pytest.mark.parametrize("size", [(40, 56), (37, 51), (8, 9)])
def test_parity_at_any_size(net, size):
    exported = dense.export_dense(net, height=size[0], width=size[1])
    result = dense.parity(net, exported)
    assert result["max_error_std"] < 1e-4
    assert result["shape"] == [1, 5, (size[0] + 1) // 2, (size[1] + 1) // 2]


def test_full_resolution_and_own_input(net):
    exported = dense.export_dense(net, height=21, width=34, low_resolution_logits=False)
    assert _shape(exported.graph.output[0]) == [1, 5, 21, 34]
    result = dense.parity(net, exported, torch.randn(1, 3, 21, 34) * 2)
    assert result["max_error_std"] < 1e-4
    assert result["argmax_agreement"] > 0.999


def test_parity_sees_a_wrong_weight(net, model):
    broken = dense._copy(model)
    tensor = next(t for t in broken.graph.initializer if t.name == "last.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[3] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert dense.parity(net, broken)["max_error_std"] > 1e-3


def test_same_module_gives_same_bytes(net, model):
    assert dense.to_bytes(dense.export_dense(net, height=40, width=56)) == dense.to_bytes(model)


def test_training_mode_and_weights_are_untouched(net):
    assert net.training
    assert net.deep[1].training
    before = {k: v.clone() for k, v in net.state_dict().items()}
    dense.export_dense(net, height=16, width=16)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_half_weights_touch_only_large_learned_ones(net, model):
    half = dense.to_half_weights(model)
    stored = {t.name: t.data_type for t in half.graph.initializer}
    assert stored["deep.0.weight.half"] == onnx.TensorProto.FLOAT16
    assert stored["last.weight"] == onnx.TensorProto.FLOAT  # 480 bytes
    grid = next(t for t in half.graph.initializer if list(t.dims) == [1, 20, 28, 2])
    assert grid.data_type == onnx.TensorProto.FLOAT
    assert grid.ByteSize() > 1024
    result = dense.parity(net, half)
    assert 1e-6 < result["max_error_std"] < 5e-3
    assert len(dense.to_bytes(half)) < 0.7 * len(dense.to_bytes(model))


def test_half_weights_keep_what_float16_cannot_hold():
    wide = nn.Conv2d(3, 20, 3)
    with torch.no_grad():
        wide.weight[0, 0, 0, 0] = 1e5
    half = dense.to_half_weights(dense.export_dense(wide, height=8, width=8))
    assert all(t.data_type == onnx.TensorProto.FLOAT for t in half.graph.initializer)


def test_two_sizes_share_one_weight_file(net, model, tmp_path):
    large = dense.export_dense(net, height=80, width=112)
    files, weights = dense.share_weights({"base.onnx": model, "baseline.onnx": large})
    alone, _ = dense.share_weights({"base.onnx": model})
    assert files["base.onnx"] == alone["base.onnx"]
    stored = sum(t.ByteSize() for t in large.graph.initializer if t.ByteSize() > 1024)
    assert len(weights) < stored + 8192  # the small graph adds its grid, not its weights
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "base.weights").write_bytes(weights)
    for name in files:
        assert dense.parity(net, str(tmp_path / name))["max_error_std"] < 1e-4
        assert dense.parity(net, tmp_path / name)["argmax_agreement"] > 0.999


def test_shared_file_must_lie_beside_the_graphs(model):
    with pytest.raises(InputError, match="plain file name"):
        dense.share_weights({"base.onnx": model}, "../base.weights")


class DataDependent(nn.Module):
    def forward(self, x):
        return torch.nonzero(x)[:1].float().reshape(1, 1, 1, -1)


def test_data_dependent_shape_is_refused_by_node():
    with pytest.raises(UnsupportedOp, match="NonZero"):
        dense.export_dense(DataDependent(), height=8, width=8)


def test_what_the_exporter_cannot_write_is_a_clear_error():
    class Odd(nn.Module):
        def forward(self, x):
            return F.adaptive_max_pool2d(x, (3, 3))

    with pytest.raises(UnsupportedOp, match="Odd at 16x16"):
        dense.export_dense(Odd(), height=16, width=16)


@pytest.mark.parametrize("bins", [(3, 3), 2, (None, 5), (4, None), 1, (1, 3)])
def test_adaptive_average_pools_of_any_network(bins):
    """Bins that do not divide the map: products with constants, without a change of the network."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(bins))
    exported = dense.export_dense(net, height=16, width=13)
    assert dense.parity(net, exported)["max_error_std"] < 1e-5
    kinds = [n.op_type for n in exported.graph.node]
    assert kinds == ["Conv", "GlobalAveragePool"] if bins == 1 else ["Conv", "MatMul", "MatMul"]
    assert F.adaptive_avg_pool2d is torch.nn.functional.adaptive_avg_pool2d
    assert F.adaptive_avg_pool2d.__module__ == "torch.nn.functional"


@pytest.mark.parametrize("epsilon", [1e-8, 1e-10, 1e-12])
def test_small_epsilons_are_kept(epsilon):
    """Some exporters take x + c for x when c is 1e-8 or less."""

    class Root(nn.Module):
        def forward(self, x):
            return (x * 0 + epsilon) ** 0.5

    exported = dense.export_dense(Root(), height=2, width=3)
    session = ort.InferenceSession(dense.to_bytes(exported), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": torch.randn(1, 3, 2, 3).numpy()})
    assert found.min() == found.max() == pytest.approx(epsilon**0.5, rel=1e-3)


def test_tensors_of_five_dimensions_are_refused_by_node():
    class Volume(nn.Module):
        def forward(self, x):
            return F.interpolate(x[:, None], scale_factor=2.0, mode="nearest")[:, 0]

    with pytest.raises(UnsupportedOp, match=r"\(Resize\) takes a tensor of 5 dimensions: expected 4"):
        dense.export_dense(Volume(), height=6, width=8)


def test_a_resize_to_a_computed_size_is_refused_by_node(model):
    broken = dense._copy(model)
    (node,) = [n for n in broken.graph.node if n.op_type == "Resize"][:1]
    sizes = next(t for t in broken.graph.initializer if t.name == node.input[-1])
    sizes.name = "given"
    broken.graph.node.insert(0, onnx.helper.make_node("Abs", ["given"], [node.input[-1]], name="sizes"))
    with pytest.raises(UnsupportedOp, match=f"node {node.name} .*size that is computed.*Python integers"):
        dense.check_operators(broken)


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_size_must_be_positive(net, size):
    with pytest.raises(InputError, match="positive"):
        dense.export_dense(net, height=size[0], width=size[1])


def test_network_must_return_one_map(net):
    with pytest.raises(InputError, match="found tuple"):
        dense.export_dense(_Pair(), height=8, width=8)


class _Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_batch_norm_without_a_convolution_survives():
    pre = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)).eval()
    exported = dense.export_dense(pre, height=6, width=7)
    assert dense.parity(pre, exported)["max_error_std"] < 1e-4
