"""SegRefiner's U-Net -> ONNX: dynamic batch, the time step as an input, standard operators of opset 17.

Three things are folded, all exactly: everything that depends on the time step alone becomes one table a block (with
the bias of the convolution before it), the scale of the attention goes into the weights of q and k, and q, k, v get
three blocks of channels instead of the head-major order. No shape arithmetic is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from crispseg import __version__
from crispseg.errors import InputError
from crispseg.export.dense import IR_VERSION, OPSET
from crispseg.models.refiners.mask_unet import EPSILON, GROUPS, Attention, Down, Residual
from crispseg.models.refiners.segrefiner import SegRefiner

KIND = "segrefiner"


def export_segrefiner(module: SegRefiner, size: int) -> ModelProto:
    """Write the network for inputs of ``size`` x ``size``.

    Returns:
        Model with inputs image float32 [N,4,size,size] (normalised RGB, mask 0/1) and t int64 [N]; output logits
        float32 [N,1,size,size].

    Raises:
        InputError: a size that is not a positive multiple of the network's stride.
    """
    stride = module.stride
    if isinstance(size, bool) or not isinstance(size, int) or size < stride or size % stride or size > 4096:
        raise InputError(f"window {size!r}: expected a multiple of {stride} from {stride} to 4096")
    model = _Writer(module, size).model()
    onnx.checker.check_model(model)
    return model


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


class _Writer:
    """Walks the module and collects nodes and initialisers. ``side`` is that of the maps at this point."""

    def __init__(self, module: SegRefiner, size: int) -> None:
        self.unet, self.size, self.side = module.denoise_model, size, size
        self.heads = module.config.heads
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.weight("groups.one", np.ones(GROUPS))
        self.weight("groups.zero", np.zeros(GROUPS))
        self.weight("twice", np.array([1, 1, 2, 2]))
        time = _numpy(self.unet.time_embed.weight)
        self.time = time / (1 + np.exp(-time))  # SiLU; float64

    def model(self) -> ModelProto:
        h = self.conv("stem", "image", _numpy(self.unet.stem.weight), _numpy(self.unet.stem.bias))
        skips = [h]
        for name, parts in self.unet.stages():
            if name.startswith("output"):
                h = self.op("Concat", [h, skips.pop()], f"{name}.joined", axis=1)
            for index, part in enumerate(parts):
                h = self.part(part, f"{name}.{index}", h)
            if name.startswith("input"):
                skips.append(h)
        norm, _, last = self.unet.out
        h = self.silu("out", self.norm(norm, "out", h))
        self.conv("logits", h, _numpy(last.weight), _numpy(last.bias))
        return self.finished()

    def part(self, part: Any, name: str, x: str) -> str:
        if isinstance(part, Residual):
            return self.residual(part, name, x)
        if isinstance(part, Attention):
            return self.attention(part, name, x)
        if isinstance(part, Down):
            self.side //= 2
            return self.conv(name, x, _numpy(part.op.weight), _numpy(part.op.bias), stride=2)
        self.side *= 2
        options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        larger = self.op("Resize", [x, "", "twice"], f"{name}.twice", **options)
        return self.conv(name, larger, _numpy(part.conv.weight), _numpy(part.conv.bias))

    def residual(self, part: Any, name: str, x: str) -> str:
        norm, _, conv = part.in_layers
        linear = part.emb_layers[1]
        y = self.silu(f"{name}.in", self.norm(norm, f"{name}.in", x))
        y = self.conv(f"{name}.conv1", y, _numpy(conv.weight), None)
        table = self.time @ _numpy(linear.weight).T + _numpy(linear.bias) + _numpy(conv.bias)
        rows = self.weight(f"{name}.time.table", table[:, :, None, None])
        y = self.op("Add", [y, self.op("Gather", [rows, "t"], f"{name}.time", axis=0)], f"{name}.timed")
        norm, _, _, conv = part.out_layers
        y = self.silu(f"{name}.mid", self.norm(norm, f"{name}.mid", y))
        y = self.conv(f"{name}.conv2", y, _numpy(conv.weight), _numpy(conv.bias))
        skip = part.skip_connection
        if hasattr(skip, "weight"):
            x = self.conv(f"{name}.skip", x, _numpy(skip.weight), _numpy(skip.bias))
        return self.op("Add", [y, x], name)

    def attention(self, part: Any, name: str, x: str) -> str:
        weight, bias = _numpy(part.qkv.weight), _numpy(part.qkv.bias)
        channels, heads, cells = weight.shape[1], part.heads, self.side * self.side
        width = channels // heads
        scale = np.array([width**-0.25, width**-0.25, 1.0])
        order = (heads, 3, width)
        weight = (weight.reshape(*order, channels) * scale[None, :, None, None]).swapaxes(0, 1)
        bias = (bias.reshape(order) * scale[None, :, None]).swapaxes(0, 1)
        y = self.norm(part.norm, name, x)
        y = self.conv(f"{name}.qkv", y, weight.reshape(3 * channels, channels, 1, 1), bias.reshape(-1))
        names = [f"{name}.{part}" for part in ("q", "k", "v")]
        self.nodes.append(helper.make_node("Split", [y], [f"{n}.map" for n in names], f"{name}.split", axis=1))
        q, k, v = (self.reshape(f"{n}.map", n, [0, heads, width, cells]) for n in names)
        q = self.op("Transpose", [q], f"{name}.rows", perm=[0, 1, 3, 2])
        share = self.op("Softmax", [self.op("MatMul", [q, k], f"{name}.scores")], f"{name}.share", axis=-1)
        share = self.op("Transpose", [share], f"{name}.columns", perm=[0, 1, 3, 2])
        y = self.op("MatMul", [v, share], f"{name}.mixed")
        y = self.reshape(y, f"{name}.map", [0, channels, self.side, self.side])
        proj = _numpy(part.proj_out.weight)[..., None]
        return self.op("Add", [self.conv(f"{name}.proj", y, proj, _numpy(part.proj_out.bias)), x], name)

    def norm(self, norm: Any, name: str, x: str) -> str:
        """GroupNorm: opset 17 has none, so a group becomes a channel of InstanceNormalization."""
        channels = norm.num_channels
        y = self.reshape(x, f"{name}.groups", [0, GROUPS, -1])
        y = self.op("InstanceNormalization", [y, "groups.one", "groups.zero"], f"{name}.normalised", epsilon=EPSILON)
        y = self.reshape(y, f"{name}.channels", [0, channels, self.side, self.side])
        gamma = self.weight(f"{name}.gamma", _numpy(norm.weight)[:, None, None])
        beta = self.weight(f"{name}.beta", _numpy(norm.bias)[:, None, None])
        return self.op("Add", [self.op("Mul", [y, gamma], f"{name}.scaled"), beta], f"{name}.norm")

    def silu(self, name: str, x: str) -> str:
        return self.op("Mul", [x, self.op("Sigmoid", [x], f"{name}.sigmoid")], f"{name}.silu")

    def conv(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray | None, stride: int = 1) -> str:
        side = weight.shape[-1]
        inputs = [x, self.weight(f"{name}.weight", weight)]
        inputs += [] if bias is None else [self.weight(f"{name}.bias", bias)]
        sides = {"kernel_shape": [side] * 2, "strides": [stride] * 2, "pads": [side // 2] * 4}
        return self.op("Conv", inputs, name, **sides)

    def reshape(self, x: str, name: str, shape: Sequence[int]) -> str:
        sizes = f"shape.{'_'.join(map(str, shape))}"
        if all(tensor.name != sizes for tensor in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.array(shape, np.int64), sizes))
        return self.op("Reshape", [x, sizes], name)

    def weight(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def op(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    def finished(self) -> ModelProto:
        sides: list[int | str | None] = [self.size, self.size]
        inputs = [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4, *sides]),
            helper.make_tensor_value_info("t", TensorProto.INT64, ["N"]),
        ]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1, *sides])]
        graph = helper.make_graph(self.nodes, KIND, inputs, outputs, self.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="crispseg"
        )
        model.producer_version = __version__
        helper.set_model_props(model, {"crispseg.kind": KIND, "crispseg.heads": str(self.heads)})
        return model
