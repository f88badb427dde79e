"""A base from any ONNX file: ``--onnx F``.

The file is brought to the form of every other base: one float32 input "image" [1,3,H,W], one output "logits"
[1,C,h,w], static sizes, no shape arithmetic, standard operators, opset 17 where it can be converted. A float16 image
or float16 logits get a Cast; what lies between stays in float16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from crispseg.engines.external_data import check_external_data
from crispseg.errors import BundleError, InputError, UnsupportedOp
from crispseg.export import dense
from crispseg.export.compare import open_onnxruntime
from crispseg.export.fold import drop_unused, fold_constants, merge_equal, rename_readably
from crispseg.export.foreign_ends import connect_input, connect_output, take_logarithm, without_softmax
from crispseg.export.foreign_probe import FLOOR, LOGARITHM, is_probability
from crispseg.export.sources import Foreign, foreign_info
from crispseg.models.bases import BaseInfo

# Natural logarithm of the least normal float16: of smaller ones a rounding takes part of the digits.
LEAST_HALF = -14 * np.log(2)
_OLDEST = 11  # Resize has had its coordinate modes since then
# The converter knows no way back from opset 20, where GridSample's modes got other names; TensorRT reads those as
# nearest (NVIDIA/TensorRT#4646). Under this domain it lets the node pass.
_HELD = "crispseg.held"


class Onnx:
    """An ONNX file as a source."""

    random = False

    def __init__(
        self, base: Foreign, path: Path, model: onnx.ModelProto, num_classes: int, size: tuple[int, int]
    ) -> None:
        self.path = path
        self.model = model
        self.num_classes = num_classes
        self.wanted = base.output
        self._given: Any = None  # the file, open in ONNX Runtime
        self.half = False  # image or logits are float16
        assumed: list[str] = []
        self.layout = _layout(path, _entry(path, model), assumed)
        self.probabilities = False
        self.first = (size, self._fixed(size, assumed))
        if is_probability(self._on_noise, f"--onnx {path}: output {self.output}"):
            assumed.append(LOGARITHM)
            self.probabilities = True
            self.first = (size, self._fixed(size, []))
        shape = _dims(self.first[1].graph.output[0])
        self.info: BaseInfo = foreign_info(base, path.stem[:100] or "onnx", max(1, round(size[0] / shape[2])), assumed)
        self.notes: dict[str, Any] = {"onnx": path.name, "opset": _opset(model), "stride": self.info.stride}
        self.notes["assumed"] = assumed

    def export(self, height: int, width: int, native: bool) -> onnx.ModelProto:
        """The graph at one size."""
        return self.first[1] if self.first[0] == (height, width) else self._fixed((height, width), [])

    def parity(self, model: onnx.ModelProto, threads: int) -> dict[str, Any]:
        """Compare the given file with the graph that was made of it, both in ONNX Runtime."""
        shape = _dims(model.graph.input[0])
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        (found,) = _run(dense.to_bytes(model), {"image": x}, ["logits"], threads)
        wanted, found = self.compared(x, found, threads)
        error = float(np.abs(found - wanted).max())
        return {
            "hop": "given file -> exported file, onnxruntime",
            "max_error": error,
            "max_error_std": error / max(float(wanted.std()), 1e-12),
            "argmax_agreement": float((found.argmax(1) == wanted.argmax(1)).mean()),
            "shape": [int(n) for n in found.shape],
        }

    def compared(self, x: np.ndarray, logits: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """What the given file says of an image, and the logits of a graph made of it: both of one kind.

        Args:
            x: normalised image, float32 [1,3,H,W].
            logits: what the graph gave for it, float32 [1,C,h,w].
            threads: of ONNX Runtime.

        Returns:
            (wanted, found), float32 [1,C,h,w] each: logits, or log-probabilities where the last softmax was left out.
        """
        if self._given is None:
            source = str(self.path) if _has_external(self.path) else self.path.read_bytes()
            self._given = open_onnxruntime(source, threads)
        given = x.transpose(0, 2, 3, 1) if self.layout == "NHWC" else x
        given = given.astype(np.float16) if _is_half(_entry(self.path, self.model)) else given
        (wanted,) = self._given.run([self.output], {_entry(self.path, self.model).name: given})
        least = -40 if wanted.dtype == np.float32 else LEAST_HALF
        wanted = wanted.astype(np.float32)
        if wanted.shape != logits.shape:
            wanted = wanted.transpose(0, 3, 1, 2)
        if self.probabilities:
            return np.log(np.maximum(wanted, np.float32(FLOOR))), logits
        if not self.softmax:
            return wanted, logits
        wanted = np.log(np.maximum(wanted, 1e-30))  # equal up to a constant at every pixel
        shifted = logits - logits.max(1, keepdims=True)
        keep = wanted > least
        return np.where(keep, wanted, 0), np.where(keep, shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), 0)

    def notes_at(self, height: int, width: int) -> dict[str, Any]:
        """Nothing: a file pads for itself, or not at all."""
        return {}

    def _on_noise(self, gain: float) -> np.ndarray:
        """The graph's output on a noise image times ``gain``."""
        model = self.first[1]
        x = np.random.default_rng(0).standard_normal(_dims(model.graph.input[0])).astype(np.float32)
        return _run(dense.to_bytes(model), {"image": x * np.float32(gain)}, ["logits"], 1)[0]

    def _fixed(self, size: tuple[int, int], assumed: list[str]) -> onnx.ModelProto:
        model = dense._copy(self.model)
        graph = model.graph
        entry = _entry(self.path, model)
        _set_size(self.path, entry, size, self.layout, assumed)
        model = _convert(self.path, _infer(self.path, model), assumed)
        graph = model.graph
        fold_constants(model)
        model = _infer(self.path, model)  # what was folded makes further shapes known
        graph = model.graph
        fold_constants(model)
        known = _infer(self.path, model)
        output, layout, shape = _choose(self.path, known, self.num_classes, self.wanted, assumed)
        self.output = output
        half = _is_half(next(info for info in known.graph.output if info.name == output))
        entry = _entry(self.path, model)
        self.half = half or _is_half(entry)
        if self.half:
            parts = [name for name, there in (("image", _is_half(entry)), ("logits", half)) if there]
            assumed.append(f"{' and '.join(parts)} in float16: a Cast is added, the arithmetic stays the file's")
        connect_input(graph, entry.name, self.layout, _is_half(entry))
        self.softmax, output = without_softmax(self.path, graph, output, layout, assumed)
        connect_output(graph, output, layout, half)
        if self.probabilities:
            take_logarithm(graph)
        del graph.value_info[:], graph.input[:], graph.output[:]
        graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, *size)))
        graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
        drop_unused(graph)
        merge_equal(graph)
        rename_readably(graph)
        dense.check_operators(model)
        version = _opset(model)
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("", version))
        dense.stamp(model)
        onnx.checker.check_model(model)
        return model


def open_onnx(base: Foreign, num_classes: int, size: tuple[int, int]) -> Onnx:
    """Read and check a file.

    Raises:
        InputError: not an ONNX file, or not one image in and logits out, or made for another size.
        UnsupportedOp: operators outside the standard set, or shapes that depend on data.
    """
    path = Path(str(base.onnx))
    if not path.is_file():
        what = "nothing there" if not path.exists() else "a folder" if path.is_dir() else "a pipe or device"
        raise InputError(f"--onnx {path}: expected a file, found {what}; check the path")
    try:
        check_external_data(path)
        model = onnx.load(str(path))
        if any(not output.type.tensor_type.HasField("shape") for output in model.graph.output):
            model = onnx.shape_inference.infer_shapes(model)  # some exporters leave an open shape out altogether
        onnx.checker.check_model(model)
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
    except BundleError as error:
        text = str(error).split(";")[0]
        hint = "give an ONNX file" if "parsing" in text else "weights may lie in a file beside it"
        raise InputError(f"--onnx {text}; {hint}") from None
    except Exception as error:  # protobuf, the checker and the inliner have types of their own
        text = " ".join(str(error).split())[:200]
        raise InputError(f"--onnx {path}: expected a valid ONNX model, found: {text}") from None
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOp(
                f"{path}: node {node.name or node.output[0]} ({node.domain}::{node.op_type}): expected standard "
                "operators; export the network with those alone"
            )
    return Onnx(base, path, model, num_classes, size)


def _entry(path: Path, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    weights = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs) or "none"
        raise InputError(f"--onnx {path}: expected one input, the image; found {names}")
    return inputs[0]


def _dims(info: onnx.ValueInfoProto) -> list[int]:
    """Sizes; 0 where one is open."""
    return [d.dim_value if d.HasField("dim_value") else 0 for d in info.type.tensor_type.shape.dim]


def _is_half(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _layout(path: Path, entry: onnx.ValueInfoProto, assumed: list[str]) -> str:
    kind = TensorProto.DataType.Name(entry.type.tensor_type.elem_type)
    if kind not in ("FLOAT", "FLOAT16"):
        raise InputError(
            f"--onnx {path}: input {entry.name}: expected a normalised float32 or float16 image, found {kind}; export "
            "it with a float32 input and without its own normalisation"
        )
    dims = _dims(entry)
    if len(dims) != 4 or dims[0] not in (0, 1):
        raise InputError(f"--onnx {path}: input {entry.name}: expected 1x3xHxW, found {dims or 'no shape'} (0 = open)")
    if dims[1] == 3 or (dims[1] == 0 and dims[3] != 3):
        layout = "NCHW"
    elif dims[3] == 3:
        layout = "NHWC"
    else:
        raise InputError(f"--onnx {path}: input {entry.name}: expected 3 channels, found {dims}")
    if dims[1] != 3 or layout == "NHWC":
        assumed.append(f"the input's layout is {layout}")
    return layout


def _set_size(path: Path, entry: onnx.ValueInfoProto, size: tuple[int, int], layout: str, assumed: list[str]) -> None:
    wanted = (1, 3, *size) if layout == "NCHW" else (1, *size, 3)
    dims = _dims(entry)
    sides = dims[2:] if layout == "NCHW" else dims[1:3]
    if any(found not in (0, side) for found, side in zip(sides, size)):
        raise InputError(
            f"--onnx {path}: made for images of {sides[0]}x{sides[1]}, asked for {size[0]}x{size[1]}; --size times "
            "--scale must give the file's size, or export it with open height and width"
        )
    if 0 in dims:
        assumed.append(f"open sides of the input are fixed at {'x'.join(map(str, wanted))}")
    for dim, value in zip(entry.type.tensor_type.shape.dim, wanted):
        dim.dim_value = value


def _infer(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        del model.graph.value_info[:]
        for output in model.graph.output:  # open or old sizes are found again
            output.type.tensor_type.ClearField("shape")
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"--onnx {path}: its shapes do not fit this image size: {text}") from None


def _opset(model: onnx.ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _convert(path: Path, model: onnx.ModelProto, assumed: list[str]) -> onnx.ModelProto:
    """Opset 17 for TensorRT 8.5 and 8.6; older files from opset 11 on stay as they are."""
    version = _opset(model)
    if _OLDEST <= version <= dense.OPSET:
        return model
    held = dense._copy(model)
    for node in held.graph.node:
        if node.op_type == "GridSample":
            node.domain = _HELD
    held.opset_import.append(helper.make_opsetid(_HELD, 1))
    try:
        made = version_converter.convert_version(held, dense.OPSET)
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        if version < _OLDEST or (version >= 20 and any(n.domain == _HELD for n in held.graph.node)):
            raise UnsupportedOp(
                f"{path}: opset {version} cannot be converted to {dense.OPSET}: {text}; export it at {dense.OPSET}"
                + (" (TensorRT reads GridSample of opset 20 as nearest)" if version >= 20 else "")
            ) from None
        assumed.append(f"opset {version} is kept, which TensorRT 8.5 and 8.6 do not read ({text})")
        return model
    for node in made.graph.node:
        node.domain = "" if node.domain == _HELD else node.domain
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":  # the converter leaves it; 17 has none
            kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
        for attribute in node.attribute:
            if node.op_type == "GridSample" and attribute.name == "mode" and attribute.s in (b"linear", b"cubic"):
                attribute.s = b"bi" + attribute.s
    assumed.append(f"opset {version} is converted to {dense.OPSET}")
    return made


def _choose(
    path: Path, model: onnx.ModelProto, num_classes: int, wanted: str | None, assumed: list[str]
) -> tuple[str, str, list[int]]:
    """(name of the logits, their layout, their shape as NCHW)."""
    found: dict[str, tuple[str, list[int]]] = {}
    listing = []
    for info in model.graph.output:
        dims = _dims(info)
        kind = TensorProto.DataType.Name(info.type.tensor_type.elem_type)
        listing.append(f"{info.name} {kind} {dims}")
        if kind in ("FLOAT", "FLOAT16") and len(dims) == 4 and dims[0] == 1 and 0 not in dims:
            if dims[1] == num_classes:
                found[info.name] = ("NCHW", dims)
            elif dims[3] == num_classes:
                found[info.name] = ("NHWC", [1, dims[3], dims[1], dims[2]])
    listed = "; ".join(listing)
    if wanted is not None:
        if wanted not in found:
            raise InputError(f"--output {wanted}: expected float logits [1,{num_classes},h,w], found {listed}")
    elif len(found) != 1:
        reason = (
            "several could be the logits; say which with --output"
            if found
            else ("labels or probabilities will not do, and --classes must name as many classes as the network has")
        )
        raise InputError(f"--onnx {path}: expected logits [1,{num_classes},h,w], found {listed}: {reason}")
    name = wanted or next(iter(found))
    if len(listing) > 1 and wanted is None:
        assumed.append(f"the logits are output {name!r} of {listed} (--output)")
    if found[name][0] == "NHWC":
        assumed.append("the logits' layout is NHWC")
    return name, found[name][0], found[name][1]


def _has_external(path: Path) -> bool:
    model = onnx.load(str(path), load_external_data=False)
    return any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer)


def _run(source: str | bytes, feed: dict[str, np.ndarray], names: list[str], threads: int) -> list[np.ndarray]:
    return open_onnxruntime(source, threads).run(names, feed)
