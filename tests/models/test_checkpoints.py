"""Checkpoints: wrappers and prefixes, refusal of foreign and damaged files, strict loading."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from crispseg.errors import CheckpointError  # noqa: E402
from crispseg.models.checkpoints import load_checkpoint, load_strict  # noqa: E402


def _net():
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_unwraps_and_strips(tmp_path, wrap, prefix):
    net = _net()
    state = {prefix + key: value for key, value in net.state_dict().items()}
    path = tmp_path / "net.pth"
    torch.save({wrap: state, "epoch": 3, "mean_iu": np.float64(0.5)} if wrap else state, path)
    loaded = load_checkpoint(path)
    assert list(loaded) == list(net.state_dict())
    other = _net()
    assert load_strict(other, loaded) == []
    assert torch.equal(other[0].weight, net[0].weight)


def test_prefix_stays_when_not_common(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, path)
    assert set(load_checkpoint(path)) == {"module.a", "b"}


@pytest.mark.parametrize("legacy", [False, True])
def test_numpy_scalar_is_allowed_only_on_request(tmp_path, legacy):
    path = tmp_path / "net.pth"
    content = {"state_dict": _net().state_dict(), "mean_iu": np.float64(0.7), "step": np.int64(3)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert "0.weight" in load_checkpoint(path)
    with pytest.raises(CheckpointError, match="expected only tensors"):
        load_checkpoint(path, allow_numpy_scalar=False)


def test_numpy_one_name_is_allowed(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"state_dict": _net().state_dict(), "mean_iu": np.float64(0.7)}, path)
    data = path.read_bytes()
    if b"cnumpy._core.multiarray\n" not in data:
        pytest.skip("this numpy writes the old name itself")
    import zipfile

    renamed = tmp_path / "old.pth"
    with zipfile.ZipFile(path) as src, zipfile.ZipFile(renamed, "w") as dst:
        for item in src.infolist():
            body = src.read(item)
            dst.writestr(item.filename, body.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert "0.weight" in load_checkpoint(renamed)


class _Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": _Evil()}}, path)
    with pytest.raises(CheckpointError, match="expected only tensors"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


def test_damaged_files_give_one_clear_line(tmp_path):
    path = tmp_path / "net.pth"
    with pytest.raises(CheckpointError, match="found nothing"):
        load_checkpoint(path)
    torch.save(_net().state_dict(), path)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="net.pth") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    for content in ([torch.ones(1)], {"state_dict": {"a": 3}}, {}, {1: torch.ones(1)}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="expected"):
            load_checkpoint(path)


def test_strict_names_every_problem_and_changes_nothing():
    net = _net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = {key: value.clone() + 1 for key, value in before.items()}
    del state["1.weight"]
    state["0.weight"] = torch.zeros(3, 2)
    state["0.bias"][0] = float("nan")
    state["aux.head"] = torch.zeros(1)
    state["other"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_strict(net, state, droppable=(r"aux\.",), source="file.pth")
    message = str(caught.value)
    for part in ("file.pth", "1 missing: 1.weight", "1 not expected: other", "[2, 3]", "[3, 2]", "not finite: 0.bias"):
        assert part in message
    assert "aux" not in message
    assert "Choose the architecture" in message
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_strict_says_what_to_do_about_shapes_and_numbers():
    for key, value, words in (
        ("0.weight", torch.zeros(3, 2), "--classes"),
        ("0.bias", torch.full_like(_net().state_dict()["0.bias"], float("nan")), "diverged or the file is damaged"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_strict(_net(), {**_net().state_dict(), key: value})


def test_droppable_keys_are_returned():
    net = _net()
    state = {**net.state_dict(), "aux.head": torch.zeros(1)}
    assert load_strict(_net(), state, droppable=(r"aux\.",)) == ["aux.head"]
    del state["1.num_batches_tracked"]
    load_strict(_net(), state, droppable=(r"aux\.",))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.bool_, np.int8, np.uint8, np.int32, np.int64])
def test_numpy_scalars_beside_the_weights(tmp_path, kind):
    path = tmp_path / "net.pth"
    torch.save({"meta": {"best": kind(1)}, "state_dict": _net().state_dict()}, path)
    assert "0.weight" in load_checkpoint(path)


class HistoryBuffer:
    """Stands for the class of that name in MMEngine."""

    def __init__(self):
        self.values = np.zeros(3)


@pytest.mark.parametrize("legacy", [False, True])
def test_training_logs_of_mmengine_are_refused_with_a_way_out(tmp_path, monkeypatch, legacy):
    import sys
    import types

    name = "mmengine.logging.history_buffer"
    for end in (8, 16, len(name)):  # "mmengine", "mmengine.logging", all of it
        monkeypatch.setitem(sys.modules, name[:end], types.ModuleType(name[:end]))
    sys.modules[name].HistoryBuffer = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", name)
    path = tmp_path / "iter_160000.pth"
    content = {"meta": {}, "state_dict": _net().state_dict(), "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert f"found {name}.HistoryBuffer (MMEngine's record of the training)" in text
    assert "\n" not in text
    # What the message says does work.
    monkeypatch.chdir(tmp_path)
    exec(text.partition('python -c "')[2].rstrip('"'), {})
    assert list(load_checkpoint(tmp_path / "weights.pth")) == list(_net().state_dict())
