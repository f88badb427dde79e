"""What `crispseg verify` compares with PyTorch, and why not where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from crispseg.bundle import Bundle, NetInfo
from crispseg.errors import InputError
from crispseg.export.compare import Hop

# float16 weights against the float32 weights of a checkpoint.
TOLERANCE_HALF, AGREEMENT_HALF = 5e-2, 0.97


def _half(bundle: Bundle, file: str) -> bool:
    model = onnx.load(str(bundle.file(file)), load_external_data=False)
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)


def torch_hop(bundle: Bundle, network: str, file: str, tolerance: float) -> Hop:
    """The hop from torch to a file of the bundle; a file of float16 weights is held to wider limits."""
    if _half(bundle, file):
        return Hop(network, "torch -> onnxruntime", max(tolerance, TOLERANCE_HALF), AGREEMENT_HALF)
    return Hop(network, "torch -> onnxruntime", tolerance)


def torch_reason(random: bool) -> str:
    """Why a network without a checkpoint is not compared."""
    if random:
        return "random weights are in no checkpoint"
    return "no checkpoint given: --weights, --refiner-weights"


def foreign_reason(bundle: Bundle) -> str:
    """Of a base made with --module or --onnx: why it is not compared again. Empty for one that can be built."""
    notes = bundle.provenance.get("base")
    notes = notes if isinstance(notes, dict) else {}
    for kind in ("module", "onnx"):
        if notes.get(kind):
            parity = notes.get("parity")
            error = parity.get("max_error_std") if isinstance(parity, dict) else None
            then = f" (logits within {error} of their standard deviation)" if error is not None else ""
            again = "; give --module again to compare it here" if kind == "module" else ""
            return f"made with --{kind} {notes[kind]}: it was compared at export{then}{again}"
    return ""


def rebuilt(bundle: Bundle, net: NetInfo, weights: str | Path) -> Any:
    """The base as a torch module with the weights of a checkpoint.

    Raises:
        InputError: it was made with --module or --onnx. CheckpointError: the weights are those of another network.
    """
    reason = foreign_reason(bundle)
    if reason:
        raise InputError(f"--weights: expected a base that crispseg can build, found one {reason}")
    notes = bundle.provenance.get("base")
    if isinstance(notes, dict) and isinstance(notes.get("library"), str):
        from crispseg.export.sources import Foreign, open_source

        arguments = notes.get("arguments")
        base = Foreign(library=notes["library"], arguments=arguments if isinstance(arguments, dict) else {})
        source = open_source(base, len(bundle.classes), weights, (net.height, net.width))
        return source.module  # type: ignore[attr-defined]
    from crispseg.export.networks import base_network

    return base_network(net.architecture, len(bundle.classes), weights)[0].module
