"""Dense networks of the ``cuda`` backend: which ONNX file ONNX Runtime gets for a precision.

fp32 runs the bundle's own file. fp16 runs a copy that `crispseg build --backend cuda` converted and put into the engine
cache: converting takes seconds, so it is not done at every start. int8 is a matter of the refiner there: ONNX Runtime's
CUDA provider has no int8 convolutions, so the dense networks are those of fp16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Optional

from crispseg.bundle import Bundle
from crispseg.engines import cache
from crispseg.engines.external_data import check_external_data
from crispseg.errors import CrispsegError, InputError

FORMAT = 1  # raised when the conversion changes, so that copies are made anew
_MAX_BYTES = 2**31 - 1  # protobuf's limit: the weights lie inside the copy

Convert = Callable[[Any, str], Any]


def network_file(bundle: Bundle, role: str, precision: str) -> Path:
    """The ONNX file of a part ("base", "baseline") at a precision.

    Raises:
        EnvironmentMismatch: no converted copy; the message has the command.
        BundleError: the copy is damaged.
    """
    net = getattr(bundle, role)
    if precision == "fp32":
        return bundle.file(net.file)
    artefact = cache.find(bundle.path, _identity(bundle, role))
    artefact.read(net.file)  # refuses a damaged one
    return artefact.path / net.file


def build(
    bundle: Bundle, role: str, convert: Convert, progress: Optional[Callable[..., None]] = None, force: bool = False
) -> cache.Artefact:
    """Convert a part of the bundle to fp16 into the cache; a copy that is there already is kept.

    Args:
        bundle: checked.
        role: "base" or "baseline".
        convert: (ONNX model, "fp16") -> model; the pass lives with the exporter.
        progress: called with (done, total, text).
        force: convert again what is there.

    Raises:
        BundleError: the file is damaged.
        InputError: the bundle cannot be written, or the network is too large.
        UnsupportedOp: the pass cannot convert it.
    """
    import onnx

    net, wanted = getattr(bundle, role), _identity(bundle, role)
    try:
        found = cache.find(bundle.path, wanted)
        found.read(net.file)
        if not force:
            return found
    except CrispsegError:
        pass
    cache.require_room(bundle.path)
    if progress:
        progress(0, 1, "converting the %s to fp16" % role)
    path = bundle.file(net.file)
    check_external_data(path)
    model = convert(onnx.load(str(path)), "fp16")
    if model.ByteSize() > _MAX_BYTES:
        raise InputError("%s: expected at most 2 GiB in fp16, found %d bytes" % (path, model.ByteSize()))
    facts: Dict[str, Any] = {"precision": "fp16", "nodes": len(model.graph.node)}
    artefact = cache.store(bundle.path, wanted, {net.file: model.SerializeToString()}, facts)
    if progress:
        progress(1, 1)
    return artefact


def _identity(bundle: Bundle, role: str) -> cache.Identity:
    spec = {"precision": "fp16", "format": FORMAT}
    return cache.Identity("cuda", role, cache.sources(bundle, getattr(bundle, role).file), spec, {})
