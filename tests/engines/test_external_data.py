"""External data of an untrusted ONNX file stays inside the bundle."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from crispseg.engines.external_data import check_external_data  # noqa: E402
from crispseg.errors import BundleError  # noqa: E402


def external(location: str):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def save(path, tensor, inside_branch=False):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    if inside_branch:
        branch = helper.make_graph(
            [helper.make_node("Constant", [], ["b"], value=tensor)],
            "branch",
            [],
            [helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])],
        )
        node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([node], "g", [x], [y])
    else:
        graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("branch", [False, True])
def test_a_file_beside_is_accepted(tmp_path, branch):
    (tmp_path / "w.bin").write_bytes(bytes(16))
    save(tmp_path / "m.onnx", external("w.bin"), branch)
    check_external_data(tmp_path / "m.onnx")


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("where", ["../w.bin", "/etc/hostname", "a/w.bin", "", "..", "missing.bin"])
def test_anything_else_is_refused(tmp_path, where, branch):
    save(tmp_path / "m.onnx", external(where), branch)
    with pytest.raises(BundleError, match="expected its data in a file of the bundle"):
        check_external_data(tmp_path / "m.onnx")


def test_a_link_is_refused(tmp_path):
    (tmp_path / "real").write_bytes(bytes(16))
    (tmp_path / "w.bin").symlink_to(tmp_path / "real")
    save(tmp_path / "m.onnx", external("w.bin"))
    with pytest.raises(BundleError, match="expected its data"):
        check_external_data(tmp_path / "m.onnx")


def test_not_onnx(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a network at all")
    with pytest.raises(BundleError, match="expected a valid ONNX network"):
        check_external_data(tmp_path / "m.onnx")
