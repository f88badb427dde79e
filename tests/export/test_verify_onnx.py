"""A bundle whose base came from an ONNX file, compared with that file on frames."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from foreign_cases import bundle, exported, module, save, wrapped  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from crispseg.cli import main  # noqa: E402

torch.set_num_threads(1)


def channels_last(model):
    nodes = [helper.make_node("Transpose", ["nhwc"], ["x"], perm=[0, 3, 1, 2])]
    return wrapped(model, nodes, input=helper.make_tensor_value_info("nhwc", TensorProto.FLOAT, (1, 22, 34, 3)))


def verify(capsys, *arguments):
    """(exit code, hop -> its row) of crispseg verify."""
    code = main(["verify", *map(str, arguments), "--frames", "1", "--threads", "1", "--json"])
    text = capsys.readouterr()
    report = json.loads(text.out) if code in (0, 3) else {"hops": [], "skipped": [], "error": text.err}
    return code, {hop["hop"]: hop for hop in report["hops"] + report["skipped"]}, " ".join(text.err.split())


@pytest.mark.parametrize("kind", ["tensor", "probabilities", "enlarged probabilities", "channels last"])
def test_the_file_is_run_on_the_frames(tmp_path, capsys, kind):
    model = channels_last(exported()) if kind == "channels last" else exported(kind)
    base = save(tmp_path, model)
    bundle(tmp_path, base)
    code, hops, _ = verify(capsys, tmp_path / "b", "--onnx", base.onnx)
    assert code == 0
    assert set(hops) == {"given file -> onnxruntime", "recorded at export -> onnxruntime"}
    hop = hops["given file -> onnxruntime"]
    assert hop["passed"] is True
    assert hop["tensors"] == 1
    assert hop["error"] < 1e-5
    assert hop["agreement"] == 100


@pytest.mark.parametrize("kind", ["tensor", "probabilities"])
def test_another_file_is_noticed(tmp_path, capsys, kind):
    bundle(tmp_path, save(tmp_path, exported(kind)))
    other = exported(kind)
    (bias,) = (t for t in other.graph.initializer if t.name == "head.bias")
    changed = numpy_helper.to_array(bias).copy()
    changed[0] += 0.1
    bias.CopyFrom(numpy_helper.from_array(changed, bias.name))
    onnx.save(other, str(tmp_path / "other.onnx"))
    code, hops, _ = verify(capsys, tmp_path / "b", "--onnx", tmp_path / "other.onnx")
    assert code == 3
    assert hops["given file -> onnxruntime"]["first_difference"].startswith("logits (")
    assert hops["recorded at export -> onnxruntime"]["passed"] is True


def test_one_of_two_outputs(tmp_path, capsys):
    base = save(tmp_path, exported("twins"))
    second = onnx.load(str(base.onnx)).graph.output[1].name
    first = onnx.load(str(base.onnx)).graph.output[0].name
    bundle(tmp_path, type(base)(onnx=base.onnx, output=second))
    assert verify(capsys, tmp_path / "b", "--onnx", base.onnx, "--output", second)[0] == 0
    assert verify(capsys, tmp_path / "b", "--onnx", base.onnx, "--output", first)[0] == 3
    assert "say which with --output" in verify(capsys, tmp_path / "b", "--onnx", base.onnx)[2]


def test_a_module_and_the_file_made_of_it(tmp_path, capsys):
    """A base from torch, compared with an ONNX file that somebody else made of the same network."""
    bundle(tmp_path, module())
    onnx.save(exported(), str(tmp_path / "net.onnx"))
    code, hops, _ = verify(capsys, tmp_path / "b", "--onnx", tmp_path / "net.onnx")
    assert code == 0
    assert 0 <= hops["given file -> onnxruntime"]["error"] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--onnx", "net.onnx", "--module", "foreign_nets:Net"], "found --module and --onnx"),
        (["--onnx", "net.onnx", "--weights", "w.pth"], "the file holds its weights already"),
        (["--onnx", "net.onnx", "--pad", "16"], "--pad: expected --module with it"),
        (["--onnx", "net.onnx", "--precision", "int8"], "--precision int8: expected no checkpoint, --module or --onnx"),
        (["--onnx", "none.onnx"], "found nothing there"),
        (["--onnx", "other.onnx"], "made for images of 24x32, asked for 22x34"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    bundle(tmp_path, save(tmp_path, exported()))
    onnx.save(exported(size=(24, 32)), str(tmp_path / "other.onnx"))
    code, _, text = verify(capsys, tmp_path / "b", *arguments)
    assert code == 2
    assert message in text


def test_every_frame_counts(tmp_path, capsys):
    from PIL import Image

    base = save(tmp_path, exported())
    bundle(tmp_path, base)
    (tmp_path / "frames").mkdir()
    for i in range(2):
        picture = np.random.default_rng(i).integers(0, 256, (44, 68, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "frames" / f"{i}.png")
    arguments = [tmp_path / "b", "--onnx", base.onnx, "--images", tmp_path / "frames", "--json"]
    assert main(["verify", *map(str, arguments)]) == 0
    assert [frame["frame"] for frame in json.loads(capsys.readouterr().out)["frames_compared"]] == ["0", "1"]
