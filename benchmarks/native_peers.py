"""What one submanifold layer is measured against in benchmarks/native.py: other ways to compute the same rows on a CPU.

Every function returns a callable that does the work once, or a string that says why the peer cannot run here.
"""

from __future__ import annotations

from typing import Any, Callable, Union

import numpy as np

Job = Union[Callable[[], Any], str]
MM_ROWS = 16384


def matmul(layer: Any) -> Job:
    """torch.mm on rows that are gathered already: the first MM_ROWS output rows of a layer."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    torch.set_num_threads(1)
    padded = np.concatenate([np.zeros_like(layer.x[:1]), layer.x])
    rows = torch.from_numpy(padded[layer.table[:MM_ROWS] + 1].reshape(-1, 9 * layer.shape[1]))
    weight = torch.from_numpy(layer.weight_values.reshape(-1, layer.shape[2]))
    out = torch.empty((len(rows), layer.shape[2]))
    return lambda: torch.mm(rows, weight, out=out)


def square_matmul(side: int = 2048) -> Job:
    """torch.mm of two square matrices, the rate that a dense library reaches on this core."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    torch.set_num_threads(1)
    a, b = (torch.randn(side, side) for _ in range(2))
    out = torch.empty(side, side)
    return lambda: torch.mm(a, b, out=out)


def spconv(layer: Any, coords: np.ndarray, height: int, width: int) -> Job:
    """spconv's SubMConv2d on the CPU, indices cached. One torch thread: its scatter on the CPU races with more."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    try:
        import spconv.pytorch as library
    except Exception as error:
        return "spconv cannot be imported (%s); pip install spconv" % (
            str(error).split("\n")[0] or type(error).__name__
        )
    torch.set_num_threads(1)
    _, cin, cout = layer.shape
    conv = library.SubMConv2d(cin, cout, 3, bias=False, indice_key="level").eval()  # CPU: bias only by hand
    # Weights [cout, ky, kx, cin]; ours are [kx * 3 + ky, cin, cout].
    values = layer.weight_values.reshape(3, 3, cin, cout).transpose(3, 1, 0, 2)
    conv.weight.data = torch.from_numpy(np.ascontiguousarray(values)).reshape(conv.weight.shape)
    bias = torch.from_numpy(layer.bias)
    sites = np.concatenate([np.zeros((len(coords), 1), np.int32), coords], 1)
    features = torch.from_numpy(np.ascontiguousarray(layer.x))
    x = library.SparseConvTensor(features, torch.from_numpy(sites), [height, width], 1)

    def run() -> Any:
        with torch.no_grad():
            return torch.relu_(conv(x).features.add_(bias))

    layer.run()
    error = np.abs(run().numpy() - layer.y).max() / np.abs(layer.y).max()
    if error > 1e-4:
        return "spconv gives other values (%.1e of the largest)" % error
    return run


def portable(layer: Any) -> Job:
    """The op's portable body in ONNX Runtime, weights as constants, one thread."""
    try:
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        from crispseg.export.bodies import attach_bodies
        from crispseg.plugins.ops import DOMAIN, IR_VERSION, OPSET, PLUGIN_ATTRIBUTES
    except ImportError as error:
        return "%s is not installed" % error.name
    _, cin, cout = layer.shape
    constants = [
        numpy_helper.from_array(value, name)
        for name, value in (("weight", layer.weight_values), ("bias", layer.bias), ("count", np.zeros(1, np.int32)))
    ]
    node = helper.make_node(
        "SparseConv2d", ["x", "map", "count", "weight", "bias"], ["y"], domain=DOMAIN, relu=1, **PLUGIN_ATTRIBUTES
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "layer", [value("x", TensorProto.FLOAT, [None, cin]), value("map", TensorProto.INT32, [None, 9])],
        [value("y", TensorProto.FLOAT, [None, cout])], constants,
    )  # fmt: skip
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = attach_bodies(helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION))
    onnx.checker.check_model(model)
    session = ort_session(onnxruntime, model)
    feeds = {"x": np.ascontiguousarray(layer.x), "map": layer.table}
    return lambda: session.run(None, feeds)


def dense(cin: int, cout: int, height: int, width: int) -> Job:
    """A 3x3 convolution of all pixels in ONNX Runtime, one thread; bias and ReLU fused."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        from crispseg.plugins.ops import IR_VERSION, OPSET
    except ImportError as error:
        return "%s is not installed" % error.name
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(rng.standard_normal((cout, cin, 3, 3), dtype=np.float32), "weight"),
        numpy_helper.from_array(np.zeros(cout, np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "weight", "bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, height, width])
        for name, channels in (("x", cin), ("y", cout))
    ]
    graph = helper.make_graph(nodes, "dense", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = ort_session(onnxruntime, model)
    feeds = {"x": rng.standard_normal((1, cin, height, width), dtype=np.float32)}
    return lambda: session.run(None, feeds)


def ort_session(onnxruntime: Any, model: Any) -> Any:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
