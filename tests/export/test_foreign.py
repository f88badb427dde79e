"""Any module and any ONNX file become a bundle, and what does not fit is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import foreign_nets  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from crispseg.classes import ClassInfo  # noqa: E402
from crispseg.errors import AccuracyGate, CheckpointError, InputError, UnsupportedOp  # noqa: E402
from crispseg.export import dense, foreign_onnx, project, sources  # noqa: E402
from crispseg.export.sources import Foreign, open_source  # noqa: E402

torch.set_num_threads(1)

C, SIZE = 5, (22, 34)
CLASSES = [ClassInfo(f"c{i}", (i, i, i)) for i in range(C)]


def bundle(tmp_path, base, weights=None, **options):
    said = []
    made = project.export_bundle(
        base,
        tmp_path / "b",
        weights=weights,
        refiner=None,
        height=44,
        width=68,
        classes=CLASSES,
        progress=said.append,
        **options,
    )
    return made, said


def run(made, x):
    session = ort.InferenceSession(str(made.file("base.onnx")), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": x})[0]


def image(size=SIZE):
    return np.random.default_rng(1).standard_normal((1, 3, *size)).astype(np.float32)


def module(kind="tensor", **options):
    return Foreign(module="foreign_nets:Net", arguments={"kind": kind}, **options)


class TestModule:
    def test_bundle_computes_what_the_module_does(self, tmp_path):
        net = foreign_nets.Net(C)
        with torch.no_grad():
            net.head.weight.mul_(2)
        torch.save({"state_dict": {"module." + k: v for k, v in net.state_dict().items()}}, tmp_path / "w.pth")
        made, said = bundle(tmp_path, module(), tmp_path / "w.pth")
        x = image()
        with torch.no_grad():
            wanted = net.eval()(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(run(made, x), wanted, atol=1e-4)
        assert (made.base.logits_height, made.base.logits_width, made.base.architecture) == (11, 17, "Net")
        assert not made.base.random_weights
        notes = made.provenance["base"]
        assert notes["module"] == "foreign_nets:Net"
        assert notes["stride"] == 2
        assert notes["checkpoint"] == "w.pth"
        assert notes["parity"]["hop"] == "torch -> onnxruntime"
        assert notes["parity"]["max_error_std"] < 1e-4
        assert "Net takes num_classes=5" in notes["assumed"]
        assert [t for t in said if t.startswith("assumed: images are normalised by ImageNet")]

    @pytest.mark.parametrize("kind", ["probabilities", "enlarged probabilities"])
    def test_probabilities_become_logits(self, tmp_path, kind):
        made, said = bundle(tmp_path, module(kind))
        with torch.no_grad():
            wanted = foreign_nets.Net(C, kind=kind).eval()(torch.from_numpy(image())).numpy()
        found = np.exp(run(made, image()))
        np.testing.assert_allclose(found / found.sum(1, keepdims=True), wanted, atol=1e-5)
        assert [t for t in said if "returns probabilities: their logarithm is used" in t]

    def test_logits_of_another_precision(self, tmp_path):
        made, said = bundle(tmp_path, module("half"))
        with torch.no_grad():
            wanted = foreign_nets.Net(C).eval()(torch.from_numpy(image())).numpy()
        assert run(made, image()).dtype == np.float32
        np.testing.assert_allclose(run(made, image()), wanted, atol=2e-3)
        assert "assumed: the logits are brought from float16 to float32" in said

    def test_quiet_positive_logits_are_no_sigmoid(self, tmp_path):
        made, _ = bundle(tmp_path, module("positive"))
        found = run(made, image())
        assert 0 <= found.min() < found.max() < 1

    def test_settings_replace_assumptions(self, tmp_path):
        settings = {"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0), "channel_order": "bgr", "upsample": "nearest"}
        made, _ = bundle(tmp_path, Foreign(module="foreign_nets:plain", **settings))
        found = made.base
        assert (found.mean, found.std, found.channel_order, found.upsample) == tuple(settings.values())
        assert made.provenance["base"]["assumed"] == ["the weights are those that the factory returns (--weights)"]

    @pytest.mark.parametrize(("kind", "output", "size"), [("dict", None, SIZE), ("dict", "aux", (11, 17))])
    def test_the_output_of_several(self, tmp_path, kind, output, size):
        made, said = bundle(tmp_path, module(kind, output=output))
        assert (made.base.logits_height, made.base.logits_width) == size
        assert bool([t for t in said if "the logits are output 'out'" in t]) == (output is None)

    def test_the_only_fitting_output(self, tmp_path):
        made, said = bundle(tmp_path, module("tuple"))
        assert [t for t in said if "the logits are output 0 of 0: [1, 5, 11, 17]; 1: [1, 8, 11, 17]" in t]
        with torch.no_grad():
            wanted = foreign_nets.Net(C).eval()(torch.from_numpy(image())).numpy()
        np.testing.assert_allclose(run(made, image()), wanted, atol=1e-4)

    @pytest.mark.parametrize(
        ("base", "match"),
        [
            (module("twins"), "several could be the logits; say which with --output"),
            (module("sigmoid"), "found values from 0 to 1 that do not sum to 1 .* as a sigmoid"),
            (module("text"), "found str; return a tensor"),
            (module("one-hot"), "found labels .* without its argmax"),
            (module("infinite"), "expected finite logits, found 935 of 935 values"),
            (module("binary"), r"found \[1, 1, 11, 17\]; one channel tells two classes apart"),
            (module("labels"), r"expected logits \[1,5,h,w\], found \[1, 11, 17\] int64; whole numbers are labels"),
            (module("tuple", output="7"), "--output 7: expected one of 0: "),
            (module("tuple", output="1"), "--output 1: expected logits"),
            (Foreign(module="foreign_nets:Net", arguments={"num_classes": 6}), "as many classes as the network has"),
            (Foreign(module="foreign_nets:Net", arguments={"kinds": 1}), "unexpected keyword argument 'kinds'"),
            (Foreign(module="foreign_nets:broken"), "RuntimeError: no such backbone"),
            (Foreign(module="foreign_nets:leaves"), "SystemExit: 3"),
            (module(droppable=("aux",)), "--drop: expected --weights with it"),
            (Foreign(module="foreign_nets:number"), "expected a function or a class, found a int"),
            (Foreign(module="foreign_nets:nothing"), "cannot be imported"),
            (Foreign(module="no_such_package:f"), "run crispseg in the folder that holds it"),
            (Foreign(module="foreign_nets"), "expected package.module:factory"),
            (Foreign(module="os:getcwd"), "expected a torch.nn.Module, found a str"),
            (Foreign(module="foreign_nets:plain", mean=(1.0, 2.0, 3.0)), "expected both"),
            (Foreign(module="foreign_nets:plain", channel_order="yuv"), "expected rgb or bgr"),
            (Foreign(module="foreign_nets:plain", upsample="cubic"), "expected nearest"),
            (Foreign(), "expected one of a name, --module and --onnx"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, base, match):
        with pytest.raises(InputError, match=match):
            bundle(tmp_path, base)
        assert list(tmp_path.iterdir()) == []

    def test_weights_are_strict_but_for_what_may_be_dropped(self, tmp_path):
        state = {**foreign_nets.Net(C).state_dict(), "decoder.weight": torch.zeros(3)}
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=r"1 not expected: decoder\.weight"):
            open_source(module(), C, tmp_path / "w.pth", SIZE)
        source = open_source(module(droppable=(r"decoder\.",)), C, tmp_path / "w.pth", SIZE)
        assert source.notes["dropped"]["keys"] == 1
        with pytest.raises(InputError, match="expected a regular expression"):
            open_source(module(droppable=("[",)), C, tmp_path / "w.pth", SIZE)

    def test_a_module_that_fails_on_import(self, tmp_path, monkeypatch):
        (tmp_path / "half_a_net.py").write_text("def build(:")
        (tmp_path / "a_script.py").write_text("raise SystemExit('usage: a_script')")
        monkeypatch.chdir(tmp_path)
        for name, match in (("half_a_net", "cannot be imported: SyntaxError"), ("a_script", "SystemExit: usage")):
            with pytest.raises(InputError, match=match):
                open_source(Foreign(module=name + ":build"), C, None, SIZE)

    def test_sides_that_the_module_refuses_are_padded_in_the_graph(self, tmp_path):
        base = Foreign(module="foreign_nets:Strict")
        with pytest.raises(InputError, match="sides .* are no multiples of 16; .* give --pad"):
            bundle(tmp_path, base)
        made, _ = bundle(tmp_path, Foreign(module="foreign_nets:Strict", pad_to=16))
        x = torch.from_numpy(image())
        with torch.no_grad():
            logits = foreign_nets.Net(C).eval()(torch.nn.functional.pad(x, (0, 14, 0, 10)))
        wanted = torch.nn.functional.interpolate(logits, size=(32, 48), mode="bilinear")[:, :, :22, :34]
        np.testing.assert_allclose(run(made, image()), wanted.numpy(), atol=1e-5)
        assert "multiples of 16 (22x34 -> 32x48)" in made.provenance["base"]["padding"]
        with pytest.raises(InputError, match="expected 1 or more"):
            bundle(tmp_path, Foreign(module="foreign_nets:Strict", pad_to=0))

    def test_logits_at_the_size_of_the_input_must_be_there(self, tmp_path):
        with pytest.raises(InputError, match="ends at 11x17 for an image of 22x34"):
            bundle(tmp_path, module(), logits="input")


def exported(kind="tensor", size=SIZE, dynamic=False, opset=17):
    buffer = io.BytesIO()
    axes = {"x": {0: "n", 2: "h", 3: "w"}} if dynamic else None
    net = foreign_nets.Net(C, kind=kind).eval()
    image = torch.zeros(1, 3, *size)
    torch.onnx.export(net, (image,), buffer, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes)
    return onnx.load_model_from_string(buffer.getvalue())


def save(tmp_path, model):
    onnx.save(model, str(tmp_path / "net.onnx"))
    return Foreign(onnx=tmp_path / "net.onnx")


def refused(tmp_path, model, error, match):
    base = save(tmp_path, model)
    with pytest.raises(error, match=match):
        bundle(tmp_path, base)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def wrapped(model, before=(), after=(), **changes):
    """The model with nodes in front of "x" or behind its output."""
    graph = model.graph
    if after:
        graph.node.extend(after)
        graph.output[0].CopyFrom(changes["output"])
    if before:
        for node in reversed(before):
            graph.node.insert(0, node)
        graph.input[0].CopyFrom(changes["input"])
    return model


class TestOnnx:
    @pytest.mark.parametrize("opset", [11, 13, 17, 18])
    @pytest.mark.parametrize("dynamic", [False, True])
    def test_bundle_computes_what_the_file_does(self, tmp_path, dynamic, opset):
        made, said = bundle(tmp_path, save(tmp_path, exported("full", dynamic=dynamic, opset=opset)))
        with torch.no_grad():
            wanted = foreign_nets.Net(C, kind="full").eval()(torch.from_numpy(image())).numpy()
        np.testing.assert_allclose(run(made, image()), wanted, atol=1e-4)
        notes = made.provenance["base"]
        assert notes["onnx"] == "net.onnx"
        assert notes["opset"] == opset
        assert notes["parity"]["hop"] == "given file -> exported file, onnxruntime"
        assert notes["parity"]["max_error_std"] < 1e-5
        assert "tensorrt_unsupported" not in notes
        model = onnx.load(str(made.file("base.onnx")))
        assert {n.op_type for n in model.graph.node} <= {"Conv", "Relu", "Resize", "BatchNormalization"}
        assert model.opset_import[0].version == min(opset, 17)
        assert (made.base.logits_height, made.base.logits_width) == SIZE
        assert bool([t for t in said if "open sides of the input are fixed at 1x3x22x34" in t]) == dynamic

    def test_open_sizes_serve_a_baseline_as_well(self, tmp_path):
        made, _ = bundle(tmp_path, save(tmp_path, exported("tensor", dynamic=True)), baseline=True)
        assert (made.baseline.height, made.baseline.logits_width) == (44, 34)
        fixed = save(tmp_path, exported())
        with pytest.raises(InputError, match="made for images of 22x34, asked for 44x68"):
            bundle(tmp_path, fixed, baseline=True)

    def test_channels_last(self, tmp_path):
        shape = (1, *SIZE, 3)
        model = wrapped(
            exported(),
            [helper.make_node("Transpose", ["nhwc"], ["x"], perm=[0, 3, 1, 2])],
            input=helper.make_tensor_value_info("nhwc", TensorProto.FLOAT, shape),
        )
        name = model.graph.output[0].name
        model = wrapped(
            model,
            after=[helper.make_node("Transpose", [name], ["y"], perm=[0, 2, 3, 1])],
            output=helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 11, 17, C)),
        )
        made, said = bundle(tmp_path, save(tmp_path, model))
        with torch.no_grad():
            wanted = foreign_nets.Net(C).eval()(torch.from_numpy(image())).numpy()
        np.testing.assert_allclose(run(made, image()), wanted, atol=1e-4)
        assert "assumed: the input's layout is NHWC" in said
        assert "assumed: the logits' layout is NHWC" in said

    def test_a_last_softmax_is_left_out(self, tmp_path):
        made, said = bundle(tmp_path, save(tmp_path, exported("probabilities")))
        with torch.no_grad():
            wanted = foreign_nets.Net(C).eval()(torch.from_numpy(image())).numpy()
        np.testing.assert_allclose(run(made, image()), wanted, atol=1e-4)
        assert "assumed: the last Softmax is left out: the logits before it are used" in said
        assert made.provenance["base"]["parity"]["max_error_std"] < 1e-4

    @pytest.mark.parametrize("last", [False, True])
    def test_a_softmax_before_other_operators(self, tmp_path, last):
        """Its values tell, not its place; channels last, too."""
        model = exported("enlarged probabilities")
        if last:
            name = model.graph.output[0].name
            output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, *SIZE, C))
            model = wrapped(
                model, after=[helper.make_node("Transpose", [name], ["y"], perm=[0, 2, 3, 1])], output=output
            )
        made, said = bundle(tmp_path, save(tmp_path, model))
        with torch.no_grad():
            net = foreign_nets.Net(C, kind="enlarged probabilities").eval()
            wanted = net(torch.from_numpy(image())).numpy()
        found = np.exp(run(made, image()))
        np.testing.assert_allclose(found / found.sum(1, keepdims=True), wanted, atol=1e-5)
        assert [t for t in said if "returns probabilities: their logarithm is used" in t]
        assert made.provenance["base"]["parity"]["max_error_std"] < 1e-4

    def test_a_sigmoid_before_other_operators_is_refused(self, tmp_path):
        refused(tmp_path, exported("sigmoid"), InputError, "net.onnx: output .* as a sigmoid gives them")

    def test_a_last_sigmoid_is_refused(self, tmp_path):
        model = exported()
        last = [helper.make_node("Sigmoid", [model.graph.output[0].name], ["y"])]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, C, 11, 17))
        refused(tmp_path, wrapped(model, after=last, output=output), InputError, "ends in a Sigmoid: expected logits")

    def test_an_output_without_a_shape(self, tmp_path):
        model = exported()
        model.graph.output[0].type.tensor_type.ClearField("shape")
        made, _ = bundle(tmp_path, save(tmp_path, model))
        assert made.base.logits_height == 11

    def test_one_of_two_outputs(self, tmp_path):
        refused(tmp_path, exported("twins"), InputError, "several could be the logits")
        model = onnx.load(str(tmp_path / "net.onnx"))
        second = model.graph.output[1].name
        made, _ = bundle(tmp_path, Foreign(onnx=tmp_path / "net.onnx", output=second))
        with torch.no_grad():
            wanted = foreign_nets.Net(C, kind="twins").eval()(torch.from_numpy(image()))[1].numpy()
        np.testing.assert_allclose(run(made, image()), wanted, atol=1e-4)

    def test_external_weights(self, tmp_path):
        onnx.save(
            exported(),
            str(tmp_path / "net.onnx"),
            save_as_external_data=True,
            location="net.weights",
            size_threshold=16,
        )
        made, _ = bundle(tmp_path, Foreign(onnx=tmp_path / "net.onnx"))
        assert made.provenance["base"]["parity"]["max_error_std"] < 1e-5

    def test_names_that_clash_with_ours(self, tmp_path):
        model = exported()
        first = model.graph.node[0].output[0]
        for node in model.graph.node:
            node.input[:] = [{first: "logits", "head.weight": "image"}.get(n, n) for n in node.input]
            node.output[:] = [{first: "logits"}.get(n, n) for n in node.output]
        for tensor in model.graph.initializer:
            tensor.name = "image" if tensor.name == "head.weight" else tensor.name
        made, _ = bundle(tmp_path, save(tmp_path, model))
        assert made.provenance["base"]["parity"]["max_error_std"] < 1e-5

    def test_labels_are_no_logits(self, tmp_path):
        refused(tmp_path, exported("labels"), InputError, "labels or probabilities will not do")

    def test_other_size(self, tmp_path):
        refused(tmp_path, exported(size=(24, 32)), InputError, "made for images of 24x32, asked for 22x34")

    def test_two_inputs(self, tmp_path):
        model = exported()
        model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, (1,)))
        refused(tmp_path, model, InputError, "expected one input, the image; found x, y")

    @pytest.mark.parametrize(
        ("kind", "shape", "match"),
        [
            (TensorProto.UINT8, (1, 3, *SIZE), "found UINT8; export it with a float32 input"),
            (TensorProto.FLOAT, (2, 3, *SIZE), "expected 1x3xHxW"),
            (TensorProto.FLOAT, (1, 4, *SIZE), "expected 3 channels"),
            (TensorProto.FLOAT, (3, *SIZE), "expected 1x3xHxW"),
        ],
    )
    def test_inputs_that_are_no_image(self, tmp_path, kind, shape, match):
        node = helper.make_node("Identity", ["x"], ["y"])
        entry = helper.make_tensor_value_info("x", kind, shape)
        graph = helper.make_graph([node], "g", [entry], [helper.make_tensor_value_info("y", kind, shape)])
        refused(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), InputError, match)

    def test_custom_operators_are_named(self, tmp_path):
        model = exported()
        name = model.graph.output[0].name
        model.graph.node.append(helper.make_node("Fancy", [name], ["y"], name="tail", domain="com.acme"))
        model.opset_import.append(helper.make_opsetid("com.acme", 1))
        model.graph.output[0].name = "y"
        refused(tmp_path, model, UnsupportedOp, r"node tail \(com\.acme::Fancy\): expected standard operators")

    def test_shapes_that_depend_on_the_image_are_named(self, tmp_path):
        model = exported()
        name = model.graph.output[0].name
        zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
        model.graph.initializer.append(zero)
        one = numpy_helper.from_array(np.array([1, C, 1, -1], np.int64), "to")
        model.graph.initializer.append(one)
        nodes = [
            helper.make_node("NonZero", [name], ["where"], name="where"),
            helper.make_node("Cast", ["where"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["float"], ["sum"], keepdims=1),
            helper.make_node("Add", [name, "sum"], ["y"]),
        ]
        model.graph.node.extend(nodes)
        model.graph.output[0].name = "y"
        base = save(tmp_path, model)
        with pytest.raises((InputError, UnsupportedOp), match="NonZero|expected logits"):
            bundle(tmp_path, base)

    def test_other_files(self, tmp_path):
        (tmp_path / "net.onnx").write_bytes(b"no network at all")
        with pytest.raises(InputError, match="expected a valid ONNX"):
            bundle(tmp_path, Foreign(onnx=tmp_path / "net.onnx"))
        with pytest.raises(InputError, match="found nothing there"):
            bundle(tmp_path, Foreign(onnx=tmp_path / "missing.onnx"))
        with pytest.raises(InputError, match="found a folder"):
            bundle(tmp_path, Foreign(onnx=tmp_path))
        with pytest.raises(CheckpointError, match="expected a checkpoint file, found a folder"):
            bundle(tmp_path, module(), tmp_path)
        with pytest.raises(InputError, match="leave --weights out"):
            bundle(tmp_path, Foreign(onnx=tmp_path / "net.onnx"), tmp_path / "w.pth")

    def test_weights_elsewhere_are_refused(self, tmp_path):
        model = exported()
        dense._make_external(model.graph.initializer[0], "../secret", 0, 4)
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match="weights may lie in a file beside it"):
            bundle(tmp_path, Foreign(onnx=tmp_path / "net.onnx"))

    def test_a_wrong_conversion_is_noticed(self, tmp_path, monkeypatch):
        right = foreign_onnx._connect_output

        def wrong(graph, name, layout):
            right(graph, name, layout)
            tensor = next(t for t in graph.initializer if t.name == "head.bias")
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.1), tensor.name))

        monkeypatch.setattr(foreign_onnx, "_connect_output", wrong)
        refused(tmp_path, exported(), AccuracyGate, r"base\.onnx")
        made, said = bundle(tmp_path, Foreign(onnx=tmp_path / "net.onnx"), force=True)
        assert made.provenance["base"]["forced"].startswith("base.onnx: expected logits within 0.001")
        assert [t for t in said if t.startswith("FORCED: base.onnx")]


def grid_sample(opset):
    """1x3x22x34 -> 5 classes, warped by a constant grid."""
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.standard_normal((C, 3, 1, 1)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.uniform(-1, 1, (1, *SIZE, 2)).astype(np.float32), "grid"),
    ]
    mode = "linear" if opset >= 20 else "bilinear"
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GridSample", ["c", "grid"], ["y"], mode=mode, align_corners=1),
    ]
    entries = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, k, *SIZE)) for n, k in (("x", 3), ("y", C))]
    graph = helper.make_graph(nodes, "g", entries[:1], entries[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    return model


@pytest.mark.parametrize("opset", [16, 17, 20])
def test_grid_sample_leaves_by_its_old_name(tmp_path, opset):
    made, _ = bundle(tmp_path, save(tmp_path, grid_sample(opset)))
    model = onnx.load(str(made.file("base.onnx")))
    (node,) = [n for n in model.graph.node if n.op_type == "GridSample"]
    assert {a.name: a.s for a in node.attribute}["mode"] == b"bilinear"
    assert model.opset_import[0].version == min(opset, 17)
    assert made.provenance["base"]["parity"]["max_error_std"] < 1e-5


def test_operators_that_tensorrt_lacks_are_named():
    node = helper.make_node("Det", ["x"], ["y"], name="tail")
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 2))
    graph = helper.make_graph([node], "g", [entry], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ())])
    gaps = sources.tensorrt_gaps(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert gaps["8.5"] == ["tail (Det)"]


def test_operators_that_tensorrt_lacks_come_with_a_remedy(tmp_path):
    from crispseg.engines.tensorrt.operators import REMEDIES, advice, table

    assert not set(REMEDIES) & set(table("8.5")["operators"])
    (text,) = advice("8.5", ["a/LayerNormalization (LayerNormalization)", "b (LayerNormalization)"])
    assert text.startswith(
        "TensorRT 8.5 does not list LayerNormalization (node a/LayerNormalization and 1 more): write it as"
    )
    assert "--backend cuda" in text
    assert advice("8.5", ["opset 18 (TensorRT 8.5 reads up to 17)"])[0].endswith("export it at an older opset")
    made, said = bundle(tmp_path, Foreign(module="foreign_nets:normalised"))
    (node,) = [n.name for n in onnx.load(str(made.file("base.onnx"))).graph.node if n.op_type == "LayerNormalization"]
    assert made.provenance["base"]["tensorrt_unsupported"] == {"8.5": [f"{node} (LayerNormalization)"]}
    assert [t for t in said if t.startswith(f"TensorRT 8.5 does not list LayerNormalization (node {node}): write")]


class TestCommand:
    def test_module(self, tmp_path, monkeypatch, capsys):
        from crispseg.cli import main

        (tmp_path / "classes.json").write_text(
            '{"classes": [' + ", ".join(f'{{"name": "c{i}", "color": [{i}, 0, 0]}}' for i in range(C)) + "]}"
        )
        monkeypatch.chdir(tmp_path)
        code = main(
            ["export", "--module", "foreign_nets:Net", "--module-args", '{"width": 6}', "--refiner", "none"]
            + ["--size", "44x68", "--classes", "classes.json", "-o", str(tmp_path / "b")]
        )
        text = " ".join(capsys.readouterr().out.split())
        assert code == 0, text
        assert "assumed: Net takes num_classes=5" in text
        assert "base, torch -> onnxruntime: input standard normal, seed 0; gate 0.001; max_error" in text

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (["small", "--pad", "32"], "--pad: only with --module or --onnx"),
            (["--onnx", "a.onnx", "--pad", "32"], "--pad: only with --module"),
            ([], "expected one of BASE, --module and --onnx, found none"),
            (["small", "--onnx", "a.onnx"], "found BASE and --onnx"),
            (["small", "--mean", "1,2,3"], "--mean: only with --module or --onnx"),
            (["--onnx", "a.onnx", "--drop", "x"], "only with --module"),
            (["--module", "a:b", "--mean", "1,2"], "expected three numbers"),
            (["--module", "a:b", "--module-args", "[1]"], "expected an object"),
        ],
    )
    def test_options_that_do_not_go_together(self, tmp_path, capsys, arguments, match):
        from crispseg.cli import main

        assert main(["export", *arguments, "-o", str(tmp_path / "b")]) == 2
        assert match in " ".join(capsys.readouterr().err.split())
