"""Any ONNX file becomes a bundle, and one that does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import foreign_nets  # noqa: E402
from foreign_cases import SIZE, C, bundle, exported, image, module, refused, run, save, wrapped  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from crispseg.errors import AccuracyGate, CheckpointError, InputError, UnsupportedOp  # noqa: E402
from crispseg.export import dense, foreign_onnx  # noqa: E402
from crispseg.export.sources import Foreign  # noqa: E402

torch.set_num_threads(1)


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
            (TensorProto.DOUBLE, (1, 3, *SIZE), "expected a normalised float32 or float16 image, found DOUBLE"),
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
        right = foreign_onnx.connect_output

        def wrong(*given):
            right(*given)
            graph = given[0]
            tensor = next(t for t in graph.initializer if t.name == "head.bias")
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.1), tensor.name))

        monkeypatch.setattr(foreign_onnx, "connect_output", wrong)
        refused(tmp_path, exported(), AccuracyGate, r"base\.onnx")
        made, said = bundle(tmp_path, Foreign(onnx=tmp_path / "net.onnx"), force=True)
        assert made.provenance["base"]["forced"].startswith("base.onnx: expected logits within 0.001")
        assert [t for t in said if t.startswith("FORCED: base.onnx")]
