"""Dense torch network -> ONNX of one fixed size, and the weight files beside it.

Segmentation bases bake pooling bins and flow grids into their graph, so one file serves one size. The exporter used
is torch's trace based one at opset 17: the newer one cannot write 17, and TensorRT 8.5 and 8.6 read no further.
What it leaves behind (shape arithmetic, numbered names) is folded and renamed here.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import re
import warnings
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from crispseg import __version__
from crispseg.errors import InputError, UnsupportedOp
from crispseg.export.compare import open_onnxruntime
from crispseg.export.fold import drop_unused, fold_constants, infer_light, merge_equal, rename_readably
from crispseg.models.bases.blocks import adaptive_average_pool

OPSET = 17
IR_VERSION = 8
LARGE = 1024  # bytes; smaller initialisers stay as they are, where they can be read
WEIGHTS_FILE = "base.weights"
# Metadata: names of nodes, a line each, that a conversion to half precision leaves in float32.
FLOAT32_NODES = "crispseg.float32"
_ALIGN = 64

# Operators that only exist to compute shapes, or that make shapes depend on data.
_BANNED = frozenset(
    {"Shape", "Size", "ConstantOfShape", "Range", "NonZero", "If", "Loop", "Scan", "Unique", "SequenceAt", "Dropout"}
)
# Inputs that hold learned weights. Grids and pooling matrices are not among them: coordinates rounded to half
# precision move the flow by up to 3 % of the logits' deviation.
_WEIGHT_OPS = frozenset({"Conv", "ConvTranspose", "Gemm"})


class _Logits(nn.Module):
    def __init__(self, module: nn.Module, low_resolution: bool) -> None:
        super().__init__()
        self.module = module
        self.call = getattr(module, "forward_logits", module) if low_resolution else module

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.call(image)


def export_dense(
    module: nn.Module, *, height: int, width: int, channels: int = 3, low_resolution_logits: bool = True
) -> onnx.ModelProto:
    """Export ``module`` for images of exactly ``height`` x ``width``.

    Args:
        module: maps a normalised float32 image [1, channels, height, width] to logits [1, C, h, w]. When it has a
            method ``forward_logits`` (logits before its own last upsampling) that one is exported. Patterns in
            ``float32_nodes`` name nodes that half precision cannot hold; they are noted in the graph's metadata.
        height: rows of the image; need not be a multiple of the network's stride.
        width: columns of the image.
        channels: channels of the image.
        low_resolution_logits: False exports ``forward`` even when ``forward_logits`` exists.

    Returns:
        Model with input ``image`` and output ``logits`` (both float32, static), opset 17, standard operators only,
        BatchNorm folded into convolutions, no shape arithmetic. The same module gives the same bytes
        (``to_bytes``) on the same versions of torch and onnx.

    Raises:
        UnsupportedOp: a node cannot be exported, or computes shapes, or is not a standard operator.
        InputError: the size is not positive, or the module does not return logits [1, C, h, w].
    """
    if height < 1 or width < 1 or channels < 1:
        raise InputError(f"export size {channels}x{height}x{width}: expected positive numbers")
    wrapper = _Logits(module, low_resolution_logits)
    modes = {m: m.training for m in module.modules()}
    image = _probe(channels, height, width)
    buffer = io.BytesIO()
    try:
        wrapper.eval()
        with torch.no_grad(), warnings.catch_warnings(), _exact_pools():
            warnings.simplefilter("ignore")
            logits = wrapper(image)  # also fills the size caches of the network, outside the trace
            _check_logits(logits)
            _quiet_export(wrapper, image, buffer)
    except (InputError, UnsupportedOp):
        raise
    except Exception as error:
        if type(error).__module__.startswith("torch.onnx") or isinstance(error, torch.jit.TracingCheckError):
            first = str(error).strip().splitlines()[0]
            raise UnsupportedOp(
                f"{type(module).__name__} at {height}x{width} does not export to opset 17: {first}"
            ) from (error)
        raise
    finally:
        for m, training in modes.items():
            m.training = training
    model = onnx.load_model_from_string(buffer.getvalue())
    return _finish(model, tuple(image.shape), tuple(logits.shape), getattr(module, "float32_nodes", ()))


@contextlib.contextmanager
def _exact_pools() -> Iterator[None]:
    """While a network is traced, its adaptive average pools are products with constant matrices.

    The exporter cannot write them when the bins do not divide the map.
    """
    given = F.adaptive_avg_pool2d

    def pool(x: torch.Tensor, output_size: Any) -> torch.Tensor:
        rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
        bins = (int(rows or x.shape[-2]), int(columns or x.shape[-1]))
        return given(x, 1) if bins == (1, 1) or x.dim() != 4 else adaptive_average_pool(x, bins)

    setattr(F, "adaptive_avg_pool2d", pool)  # noqa: B010  the module's own functions call it by this name
    try:
        yield
    finally:
        setattr(F, "adaptive_avg_pool2d", given)  # noqa: B010


def _probe(channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, height, width, generator=generator)


def _check_logits(logits: Any) -> None:
    if not isinstance(logits, torch.Tensor) or logits.dim() != 4 or logits.shape[0] != 1:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(f"network output: expected one tensor [1, C, h, w], found {found}")


def _quiet_export(wrapper: nn.Module, image: torch.Tensor, buffer: io.BytesIO) -> None:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            wrapper,
            (image,),
            buffer,  # type: ignore[arg-type]  # the trace based exporter writes to any stream
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            do_constant_folding=True,
        )
    finally:
        logger.setLevel(level)


def _finish(
    model: onnx.ModelProto, image: Tuple[int, ...], logits: Tuple[int, ...], single: Sequence[str]
) -> onnx.ModelProto:
    graph = model.graph
    fold_constants(model)
    if any(node.op_type == "Shape" for node in graph.node):
        fold_constants(model)  # what was folded makes further shapes known: those behind a Pad
    merge_equal(graph)
    drop_unused(graph)
    # The wrapper's own scope is the first part of every name.
    rename_readably(graph, drop=("module", "call"))
    check_operators(model)
    del graph.value_info[:]
    del graph.input[:]
    del graph.output[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, image))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    stamp(model)
    kept = [node.name for node in graph.node if any(re.match(pattern, node.name) for pattern in single)]
    if kept:
        helper.set_model_props(model, {FLOAT32_NODES: "\n".join(kept)})
    onnx.checker.check_model(model)
    inferred = infer_light(model, strict_mode=True)
    _check_ranks(inferred)
    shape = tuple(d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim)
    if shape != logits:
        raise UnsupportedOp(f"exported graph: expected logits {logits} as torch computes, found {shape}")
    return model


def _check_ranks(inferred: onnx.ModelProto) -> None:
    graph = inferred.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    for node in graph.node:
        if node.op_type in ("GridSample", "Resize") and ranks.get(node.input[0], 4) != 4:
            raise UnsupportedOp(
                f"node {node.name} ({node.op_type}) takes a tensor of {ranks[node.input[0]]} dimensions: expected "
                "4, all that TensorRT takes; reshape it to [N,C,h,w] in the network"
            )


def check_operators(model: onnx.ModelProto) -> None:
    """Refuse what a base must not hold.

    Raises:
        UnsupportedOp: names the first node that computes shapes, depends on data, is no standard operator, or resizes
            to a size that is no constant.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Resize" and not known.issuperset(name for name in node.input[1:] if name):
            raise UnsupportedOp(
                f"node {node.name} (Resize) is left with a size that is computed: expected constants; give it a "
                "size of Python integers in the network"
            )
        if node.domain not in ("", "ai.onnx") or node.op_type in _BANNED:
            kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise UnsupportedOp(
                f"node {node.name} ({kind}) is left in the exported graph: expected standard operators without shape "
                f"arithmetic; compute shapes as Python integers in the network"
            )


def stamp(model: onnx.ModelProto) -> None:
    """Give a graph the names and versions of a base, in place; nothing of where it came from stays."""
    graph = model.graph
    graph.name = "dense"
    graph.doc_string = ""
    for node in graph.node:
        node.doc_string = ""
    model.ir_version = max(IR_VERSION, helper.find_min_ir_version_for(list(model.opset_import)))
    model.producer_name = "crispseg"
    model.producer_version = __version__
    model.doc_string = ""
    del model.metadata_props[:]


def to_bytes(model: onnx.ModelProto) -> bytes:
    """Serialise so that equal models give equal bytes."""
    return model.SerializeToString(deterministic=True)


def to_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large weights as float16, widened by a Cast when the graph is loaded. The arithmetic stays float32.

    Only float32 initialisers of at least 1 KiB that feed a convolution, a Gemm or an operator of the ``crispseg``
    domain, and whose values fit float16, are changed. Returns a new model.
    """
    model = _copy(model)
    graph = model.graph
    weights = {
        name for node in graph.node if node.op_type in _WEIGHT_OPS or node.domain == "crispseg" for name in node.input
    }
    casts = []
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or tensor.name not in weights:
            continue
        values = numpy_helper.to_array(tensor)
        if values.nbytes < LARGE or not np.all(np.abs(values) <= np.finfo(np.float16).max):
            continue
        name = tensor.name
        graph.initializer[index].CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + ".half"))
        casts.append(helper.make_node("Cast", [name + ".half"], [name], name=name + "/Cast", to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(casts + nodes)
    return model


def share_weights(
    models: Mapping[str, onnx.ModelProto], location: str = WEIGHTS_FILE
) -> Tuple[Dict[str, bytes], bytes]:
    """Move the large initialisers of several graphs into one external file, equal content once.

    The same base exported at two sizes has the same weights, so the second file costs a few kilobytes.

    Args:
        models: file name -> model. Not changed.
        location: name of the weight file; it must lie in the directory of the graphs.

    Returns:
        (file name -> bytes of the graph, bytes of the weight file).

    Raises:
        InputError: ``location`` is no plain file name.
    """
    if "/" in location or "\\" in location or location in ("", ".", ".."):
        raise InputError(f"weight file {location!r}: expected a plain file name beside the graphs")
    offsets: Dict[bytes, int] = {}
    blob = bytearray()
    out = {}
    for file, source in models.items():
        model = _copy(source)
        for tensor in model.graph.initializer:
            raw = numpy_helper.to_array(tensor).tobytes()
            if len(raw) < LARGE:
                continue
            key = hashlib.sha256(raw).digest()
            if key not in offsets:
                blob.extend(b"\0" * (-len(blob) % _ALIGN))
                offsets[key] = len(blob)
                blob.extend(raw)
            _make_external(tensor, location, offsets[key], len(raw))
        out[file] = to_bytes(model)
    return out, bytes(blob)


def _make_external(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    external = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    external.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        external.external_data.add(key=key, value=value)
    tensor.CopyFrom(external)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def parity(
    module: nn.Module, model: Union[str, "onnx.ModelProto"], x: Optional[torch.Tensor] = None, *, threads: int = 1
) -> Dict[str, Any]:
    """Compare torch with ONNX Runtime (CPU) on one input.

    Args:
        module: the network that was exported.
        model: path of the ONNX file (required when weights lie in an external file), or the model.
        x: normalised image [1, 3, h, w]; a fixed random one of the graph's size when not given.
        threads: threads of ONNX Runtime.

    Returns:
        ``max_error`` and ``max_error_std`` (largest absolute difference of logits, also divided by the logits'
        standard deviation), ``argmax_agreement`` (share of logit pixels with the same class), ``shape``.
    """
    session = open_onnxruntime(to_bytes(model) if isinstance(model, onnx.ModelProto) else str(model), threads)
    entry = session.get_inputs()[0]
    if x is None:
        x = _probe(*entry.shape[1:])
    if list(x.shape) != list(entry.shape):
        raise InputError(f"parity input: expected {entry.shape}, found {list(x.shape)}")
    (found,) = session.run(["logits"], {entry.name: x.numpy()})
    reference = copy.deepcopy(module).eval()
    with torch.no_grad():
        low = _Logits(reference, True)(x)
        expected = low if tuple(low.shape) == found.shape else reference(x)
    wanted = expected.numpy()
    error = float(np.abs(found - wanted).max())
    return {
        "max_error": error,
        "max_error_std": error / max(float(wanted.std()), 1e-12),
        "argmax_agreement": float((found.argmax(1) == wanted.argmax(1)).mean()),
        "shape": [int(n) for n in found.shape],
    }
