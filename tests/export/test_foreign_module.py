"""Any module becomes a bundle, and one that does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import foreign_nets  # noqa: E402
from foreign_cases import SIZE, C, bundle, image, module, run  # noqa: E402

from crispseg.errors import CheckpointError, InputError  # noqa: E402
from crispseg.export.sources import Foreign, open_source  # noqa: E402

torch.set_num_threads(1)


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
