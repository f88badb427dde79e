"""What `crispseg verify` compares with the source of a network, and why not where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from crispseg.bundle import Bundle, NetInfo
from crispseg.errors import InputError
from crispseg.export.compare import Hop

# float16 weights against the float32 weights of a checkpoint.
TOLERANCE_HALF, AGREEMENT_HALF = 5e-2, 0.97


def _half(bundle: Bundle, file: str) -> bool:
    model = onnx.load(str(bundle.file(file)), load_external_data=False)
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)


def source_hop(bundle: Bundle, network: str, file: str, tolerance: float, source: str = "torch") -> Hop:
    """The hop from the source to a file of the bundle; a file of float16 weights is held to wider limits."""
    name = f"{source} -> onnxruntime"
    if _half(bundle, file):
        return Hop(network, name, max(tolerance, TOLERANCE_HALF), AGREEMENT_HALF)
    return Hop(network, name, tolerance)


def is_file(source: Any) -> bool:
    """Whether the source of a base is an ONNX file (``foreign_onnx.Onnx``); else it is a torch module."""
    return hasattr(source, "compared")


def compared(source: Any, x: np.ndarray, logits: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """What the source of a base gives, and the base's own logits, in a form that can be compared.

    Args:
        source: a torch module, or an ONNX file (``foreign_onnx.Onnx``).
        x: normalised image, float32 [1,3,H,W].
        logits: what the base gave for it, float32 [1,C,h,w].
        threads: of ONNX Runtime.

    Returns:
        (wanted, found), float32 [1,C,h,w] each.
    """
    if is_file(source):
        return source.compared(x, logits, threads)
    import torch

    module = source.eval()
    with torch.no_grad():
        wanted = getattr(module, "forward_logits", module)(torch.from_numpy(x)).numpy()
        if wanted.shape != logits.shape:
            wanted = module(torch.from_numpy(x)).numpy()
    return wanted, logits


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
            return (
                f"made with --{kind} {notes[kind]}: it was compared at export{then}; give --{kind} again to compare it "
                "here"
            )
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
