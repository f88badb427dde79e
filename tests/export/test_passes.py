"""Graph passes: same outputs before and after, the promised graph afterwards, nothing done where it must not be."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import single
from onnx import ModelProto, TensorProto, helper, numpy_helper

from crispseg.errors import InputError, UnsupportedOp
from crispseg.export.bodies import attach_bodies, node_attributes
from crispseg.export.passes.fold_batchnorm import fold_batchnorm
from crispseg.export.passes.fuse_epilogue import fuse_epilogue
from crispseg.export.passes.half_weights import half_weights
from crispseg.export.passes.remove_dead import remove_dead
from crispseg.plugins.ops import DOMAIN, IR_VERSION, OPSET, PLUGIN_ATTRIBUTES

N, C = 20, 4


class Net:
    """Writes a graph on rows x [N, C] node by node; every method returns the name of its result."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initializers = [], []

    def weight(self, value):
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def node(self, op_type, inputs, domain="", **attributes):
        out = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [out], out, domain=domain, **attributes))
        return out

    def conv(self, x, cin=C, cout=C, bias=False):
        inputs = [x, "map", "count", self.weight(self.rng.normal(size=(9, cin, cout)) / 3)]
        inputs += [self.weight(self.rng.normal(size=cout))] * bias
        return self.node("SparseConv2d", inputs, DOMAIN, relu=0, **PLUGIN_ATTRIBUTES)

    def norm(self, x, c=C):
        values = [self.rng.normal(size=c) for _ in range(3)] + [self.rng.uniform(0.5, 2, c)]
        return self.node("BatchNormalization", [x, *map(self.weight, values)], epsilon=1e-3)

    def relu(self, x):
        return self.node("Relu", [x])

    def model(self, *outputs):
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", C]),
            helper.make_tensor_value_info("map", TensorProto.INT32, ["N", 9]),
            helper.make_tensor_value_info("count", TensorProto.INT32, [1]),
        ]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", inputs, results, self.initializers)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def values(model):
    model = attach_bodies(ModelProto.FromString(model.SerializeToString()))
    rng = np.random.default_rng(9)
    feeds = {
        "x": rng.normal(size=(N, C)).astype(np.float32),
        "map": rng.integers(-1, N, (N, 9)).astype(np.int32),
        "count": np.array([N], np.int32),
    }
    runner = single.session(model)
    used = {i.name for i in runner.get_inputs()}
    return runner.run(None, {k: v for k, v in feeds.items() if k in used})


def kinds(model):
    return [node.op_type for node in model.graph.node]


def same(before, after):
    for a, b in zip(before, values(after)):
        assert np.abs(a).max() > 0.1, "a test on zeros proves nothing"
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("bias", [False, True])
def test_fold_batchnorm(bias):
    net = Net()
    y = net.conv(net.norm(net.conv("x", bias=bias)), bias=bias)
    model = net.model(net.norm(y))
    before = values(model)
    assert fold_batchnorm(model) == 2
    remove_dead(model)
    assert kinds(model) == ["SparseConv2d", "SparseConv2d"]
    assert fold_batchnorm(model) == 0
    same(before, model)


def test_fold_keeps_a_norm_whose_input_is_read_twice_or_is_an_output():
    net = Net()
    y = net.conv("x")
    z = net.conv(net.norm(y))
    model = net.model(y, net.node("Add", [y, z]))
    assert fold_batchnorm(model) == 0
    net = Net()
    y = net.conv("x")
    model = net.model(y, net.norm(y))
    assert fold_batchnorm(model) == 0
    net = Net()
    model = net.model(net.norm(net.relu(net.conv("x"))), net.norm("x"))
    assert fold_batchnorm(model) == 0


def test_fold_of_a_weight_shared_by_two_convolutions_leaves_the_other_alone():
    net = Net()
    a, b = net.conv("x"), net.conv("x")
    net.nodes[1].input[3] = net.nodes[0].input[3]
    model = net.model(net.norm(a), b)
    before = values(model)
    assert fold_batchnorm(model) == 1
    same(before, model)


def test_fold_refuses_other_channels():
    net = Net()
    model = net.model(net.norm(net.conv("x", cout=3), c=5))
    with pytest.raises(UnsupportedOp, match="Cin,5"):
        fold_batchnorm(model)


def unet(net):
    """Two pre-activation blocks with shortcut and identity, a concat, a tail: every rewrite occurs."""
    stem = net.conv("x")
    y = net.conv(net.relu(net.norm(stem)))
    y = net.conv(net.relu(net.norm(y)))
    y = net.node("Add", [y, stem])
    deep = net.conv(net.relu(net.norm(y)), cout=6)
    up = net.conv(net.relu(net.norm(deep, 6)), cin=6, cout=3)
    x = net.node("Concat", [y, up], axis=1)
    skip = net.conv(x, cin=7)
    y = net.conv(net.relu(net.norm(x, 7)), cin=7)
    y = net.conv(net.relu(net.norm(y)))
    y = net.node("Add", [skip, y])
    return net.conv(net.relu(net.norm(y)), bias=True)


@pytest.mark.parametrize("fold_first", [True, False])
def test_fuse_epilogue(fold_first):
    net = Net()
    model = net.model(unet(net))
    before = values(model)
    if fold_first:
        fold_batchnorm(model)
    fuse_epilogue(model)
    remove_dead(model)
    assert set(kinds(model)) == {"SparseConv2d", "Concat"}
    assert kinds(model).count("Concat") == 2
    assert kinds(model).count("SparseConv2d") == 9
    convs = [n for n in model.graph.node if n.op_type == "SparseConv2d"]
    assert sum(node_attributes(n)["relu"] for n in convs) == (3 if fold_first else 0)
    assert sum(bool(n.input[5]) for n in convs if len(n.input) > 5) == 2
    assert any(len(n.output) == 3 for n in convs), "the block before down and concat feeds two norms"
    same(before, model)


def test_fuse_adds_the_residual_to_the_later_convolution():
    net = Net()
    a = net.conv("x")
    b = net.conv(a)
    model = net.model(net.node("Add", [net.conv("x"), b]), a)
    before = values(model)
    fuse_epilogue(model)
    assert kinds(model) == ["SparseConv2d"] * 3
    same(before, model)


@pytest.mark.parametrize(
    "build",
    [
        lambda net: net.relu("x"),
        lambda net: net.norm(net.conv("x")),
        lambda net: net.node("Add", [net.conv("x"), net.weight(np.ones(C))]),
        lambda net: net.node("Add", [net.relu(net.conv("x")), "x"]),
    ],
)
def test_fuse_names_what_no_epilogue_can_hold(build):
    net = Net()
    with pytest.raises(UnsupportedOp, match="epilogue"):
        fuse_epilogue(net.model(build(net)))


def test_fuse_has_two_slots_and_refuses_a_third():
    net = Net()
    y = net.conv("x")
    ends = [net.conv(net.relu(net.norm(y))) for _ in range(3)]
    with pytest.raises(UnsupportedOp):
        fuse_epilogue(net.model(y, *ends))


def test_remove_dead():
    net = Net()
    y = net.conv("x")
    net.relu(net.conv(y))
    z = net.relu(net.norm(y))
    model = net.model(z)
    before = values(model)
    fuse_epilogue(model)
    assert remove_dead(model) == 1
    (conv,) = model.graph.node
    assert list(conv.output) == ["", z]
    assert {t.name for t in model.graph.initializer} == set(conv.input[3:]) - {""}
    same(before, model)


def test_remove_dead_drops_an_unread_second_output_with_its_scale():
    net = Net()
    y = net.conv("x")
    model = net.model(y, net.relu(net.norm(y)))
    fuse_epilogue(model)
    del model.graph.output[1]
    remove_dead(model)
    (conv,) = model.graph.node
    assert list(conv.output) == [y]
    assert len(conv.input) == 4


def test_half_weights():
    net = Net()
    model = net.model(unet(net))
    before = values(model)
    assert half_weights(model) == 9
    assert half_weights(model) == 0
    assert kinds(model)[:9] == ["Cast"] * 9
    half = values(model)
    assert 0 < np.abs(half[0] - before[0]).max() < 1e-2 * np.abs(before[0]).max()
    net = Net()
    model = net.model(net.conv("x"))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((9, C, C), np.inf, np.float32), "w0"))
    with pytest.raises(InputError, match="w0"):
        half_weights(model)
