"""SparseRefiner -> ONNX of the op contract, with portable bodies.

The walk writes the network as it is written down (convolution, BatchNorm, ReLU, Add, Concat, each its own node); the
passes then fold and fuse until only crispseg ops and Concat are left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from crispseg import __version__
from crispseg.errors import InputError, UnsupportedOp
from crispseg.export.bodies import attach_bodies
from crispseg.export.passes.fold_batchnorm import fold_batchnorm
from crispseg.export.passes.fuse_epilogue import fuse_epilogue
from crispseg.export.passes.half_weights import half_weights
from crispseg.export.passes.remove_dead import remove_dead
from crispseg.plugins.ops import (
    BY_NAME,
    CONTRACT_VERSION,
    DOMAIN,
    IR_VERSION,
    OPSET,
    PLUGIN_ATTRIBUTES,
    UPSAMPLES,
    check_attributes,
    coarser,
    parse_features,
)

if TYPE_CHECKING:
    from crispseg.models.refiners.sparserefine import SparseRefiner
    from crispseg.models.refiners.unet import Block, Level, RowConv

WEIGHTS = ("float32", "float16")
KIND = "sparserefine"


def export_refiner(
    module: SparseRefiner,
    *,
    height: int,
    width: int,
    logits_shape: Sequence[int],
    upsample: str | None = None,
    threshold: float | None = None,
    capacity: int | None = None,
    weights: str = "float32",
    optimise: bool = True,
) -> ModelProto:
    """Write a refiner for frames of one size as an ONNX model that any ONNX Runtime can run.

    Args:
        module: the network; its running statistics are used (evaluation).
        height: rows of the frame, H.
        width: columns of the frame, W.
        logits_shape: (C, h, w) of the base's logits.
        upsample: "nearest", "bilinear" or "bilinear_corners"; None = the module's.
        threshold: entropy above which a pixel is active; None = the module's.
        capacity: most active pixels; None = all of them.
        weights: "float32", or "float16" to store convolution weights in half the bytes (arithmetic stays float32).
        optimise: False leaves the graph as walked (with BatchNormalization, Relu, Add), to compare with.

    Returns:
        Model with inputs image uint8 [H,W,3] RGB and logits float32 [1,C,h,w]; outputs labels and confidence uint8
        [H,W], coords int32 [N,2], count and found int32 [1].

    Raises:
        InputError: a size, rule, threshold or capacity that cannot be.
        UnsupportedOp: the module has a part outside the op contract.
    """
    config = module.config
    upsample = config.upsample if upsample is None else upsample
    threshold = config.threshold if threshold is None else threshold
    capacity = height * width if capacity is None else capacity
    _check(module, height, width, logits_shape, upsample, threshold, capacity, weights)
    model = _Writer(module, height, width, tuple(logits_shape), upsample, float(threshold), capacity).model()
    remove_dead(model)
    if optimise:
        fold_batchnorm(model)
        fuse_epilogue(model)
        remove_dead(model)
        _only_contract_ops(model)
    if weights == "float16":
        half_weights(model)
    attach_bodies(model)
    onnx.checker.check_model(model)
    return model


def _check(module: Any, height: int, width: int, logits_shape: Sequence[int], upsample: str, threshold: float,
           capacity: int, weights: str) -> None:  # fmt: skip
    config = module.config
    if config.selector != "entropy":
        raise UnsupportedOp(
            f"refiner: selector {config.selector!r} cannot be exported: it convolves the whole full-size image before "
            f"any pixel is selected, and the op contract (version {CONTRACT_VERSION}) selects by entropy alone; "
            f"use a refiner with selector 'entropy'"
        )
    for name, value in (("height", height), ("width", width), ("capacity", capacity)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"{name}: expected a whole number of at least 1, found {value!r}")
    if height * width >= 2**31 or capacity >= 2**31:
        raise InputError(f"frame {height}x{width}, capacity {capacity}: expected fewer than 2^31 pixels")
    shape = tuple(logits_shape)
    if len(shape) != 3 or shape[0] != config.num_classes or min(shape) < 1:
        raise InputError(f"logits_shape: expected ({config.num_classes}, h, w), found {shape}")
    if upsample not in UPSAMPLES:
        raise InputError(f"upsample: expected one of {', '.join(UPSAMPLES)}, found {upsample!r}")
    if not np.isfinite(threshold):
        raise InputError(f"threshold: expected a finite number, found {threshold!r}")
    if weights not in WEIGHTS:
        raise InputError(f"weights: expected one of {', '.join(WEIGHTS)}, found {weights!r}")


def _only_contract_ops(model: ModelProto) -> None:
    for node in model.graph.node:
        if node.domain != DOMAIN and node.op_type != "Concat":
            raise UnsupportedOp(f"node {node.name!r}: {node.op_type} is left after the passes; expected crispseg ops")


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


class _Writer:
    """Walks the module and collects nodes and initialisers."""

    def __init__(self, module: SparseRefiner, height: int, width: int, logits_shape: tuple[int, ...], upsample: str,
                 threshold: float, capacity: int) -> None:  # fmt: skip
        self.module, self.height, self.width = module, height, width
        self.logits_shape, self.upsample = logits_shape, upsample
        self.threshold, self.capacity = threshold, capacity
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []

    def model(self) -> ModelProto:
        config, size = self.module.config, {"height": self.height, "width": self.width}
        up = {"upsample": self.upsample}
        select = {**size, **up, "threshold": self.threshold, "capacity": int(self.capacity)}
        self.op("SelectPixels", ["logits"], ["base_labels", "coords", "count", "found", "base_confidence"], **select)
        self.op("LogitsAt", ["logits", "coords", "count"], ["yi"], **size, **up)
        features = ",".join(config.features)
        row_inputs = ["image", "coords", "count"]
        if any(kind == "p" for kind, _ in parse_features(features)):
            row_inputs.append("yi")
        colours = {"channel_order": config.channel_order, "mean": list(config.mean), "std": list(config.std)}
        self.op("PixelFeatures", row_inputs, ["x"], features=features, **colours, **size)
        self.op("SubmanifoldMap", ["coords", "count"], ["map0"], **size)

        stem = self.conv(self.module.stem, "stem", "x", "map0", "count")
        y = self.level(self.module.root, 0, stem, "coords", "count", self.height, self.width)
        y = self.norm_relu(self.module.norm, "final", y)
        weight = self.weight("classifier.weight", _numpy(self.module.classifier.weight).T[None])
        bias = self.weight("classifier.bias", _numpy(self.module.classifier.bias))
        self.op("SparseConv2d", [y, "", "count", weight, bias], ["yo"], relu=0)

        ensembler: Any = self.module.ensembler
        extra: list[str] = []
        if ensembler.mode == "gated":
            tensors = [t for part in ensembler.weights() for t in part]
            names = ("w1", "b1", "w2", "b2", "w3", "b3", "w4", "b4")
            extra = [self.weight(f"ensembler.{n}", _numpy(t)) for n, t in zip(names, tensors)]
        self.op("EnsembleLogits", ["yi", "yo", "count", *extra], ["ye"], mode=ensembler.mode)
        scatter = ["base_labels", "base_confidence", "coords", "count", "ye"]
        self.op("ScatterLabels", scatter, ["labels", "confidence"])
        return self.finished()

    def level(self, level: Level, depth: int, x: str, coords: str, count: str, height: int, width: int) -> str:
        """One scale of the U-Net on rows ``x``; returns its rows. Tensor names carry the depth."""
        here = f"map{depth}"
        for i, block in enumerate(level.encoder):
            x = self.block(block, f"enc{depth}.{i}", x, here, count)
        descent = level.descent
        if descent is None:
            return x
        below = depth + 1
        outputs = [f"coords{below}", f"count{below}", f"down_map{depth}", f"up_map{depth}"]
        extent = self.module.config.extent
        self.op("DownMap", [coords, count], outputs, height=height, width=width, extent=extent)
        small = coarser(height, width)
        size = {"height": small[0], "width": small[1]}
        self.op("SubmanifoldMap", outputs[:2], [f"map{below}"], **size)
        y = self.norm_relu(descent.norm_down, f"down{below}.in", x)
        y = self.conv(descent.down, f"down{below}", y, outputs[2], outputs[1])
        y = self.level(descent.below, below, y, outputs[0], outputs[1], *small)
        y = self.norm_relu(descent.norm_up, f"up{depth}.in", y)
        y = self.conv(descent.up, f"up{depth}", y, outputs[3], count)
        x = self.op("Concat", [x, y], [f"cat{depth}"], axis=1)
        for i, block in enumerate(level.decoder):
            x = self.block(block, f"dec{depth}.{i}", x, here, count)
        return x

    def block(self, block: Block, name: str, x: str, kernel_map: str, count: str) -> str:
        skip = x if block.shortcut is None else self.conv(block.shortcut, f"{name}.skip", x, "", count)
        y = self.norm_relu(block.norm1, f"{name}.in", x)
        y = self.conv(block.conv1, f"{name}.conv1", y, kernel_map, count)
        y = self.norm_relu(block.norm2, f"{name}.mid", y)
        y = self.conv(block.conv2, f"{name}.conv2", y, kernel_map, count)
        return self.op("Add", [y, skip], [name])

    def conv(self, conv: RowConv, name: str, x: str, kernel_map: str, count: str) -> str:
        kernel = _numpy(conv.kernel)
        weight = self.weight(f"{name}.kernel", kernel[None] if kernel.ndim == 2 else kernel)
        return self.op("SparseConv2d", [x, kernel_map, count, weight], [name], relu=0)

    def norm_relu(self, norm: Any, name: str, x: str) -> str:
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        roles = ("gamma", "beta", "mean", "variance")
        inputs = [self.weight(f"{name}.{role}", _numpy(t)) for role, t in zip(roles, tensors)]
        self.op("BatchNormalization", [x, *inputs], [f"{name}.norm"], epsilon=float(norm.eps))
        return self.op("Relu", [f"{name}.norm"], [name])

    def weight(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def op(self, op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Add a node named after its first output; a crispseg op gets its contract attributes checked."""
        domain, name = "", outputs[0]
        if op_type in BY_NAME:
            domain = DOMAIN
            check_attributes(op_type, attributes, f"node {name!r}")
            attributes = {**attributes, **PLUGIN_ATTRIBUTES}
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name, domain=domain, **attributes))
        return outputs[0]

    def finished(self) -> ModelProto:
        frame: list[int | str | None] = [self.height, self.width]
        rows: list[int | str | None] = ["N", 2]
        inputs = [
            helper.make_tensor_value_info("image", TensorProto.UINT8, [*frame, 3]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, *self.logits_shape]),
        ]
        outputs = [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, frame),
            helper.make_tensor_value_info("confidence", TensorProto.UINT8, frame),
            helper.make_tensor_value_info("coords", TensorProto.INT32, rows),
            helper.make_tensor_value_info("count", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("found", TensorProto.INT32, [1]),
        ]
        graph = helper.make_graph(self.nodes, "refiner", inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, CONTRACT_VERSION)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="crispseg")
        model.producer_version = __version__
        helper.set_model_props(model, {"crispseg.contract": str(CONTRACT_VERSION), "crispseg.kind": KIND})
        return model
