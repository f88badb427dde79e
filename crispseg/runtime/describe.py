"""What a bundle holds, read from its files: `crispseg inspect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from crispseg import bundle_calibration
from crispseg.errors import BundleError
from crispseg.report import new_report

_RANDOM = "RANDOM WEIGHTS in the {}: made for speed studies, its labels mean nothing"


def describe(path: object, verify: bool = True) -> dict:
    """A report of kind "inspect": sizes, classes, networks with parameters and operators, files and provenance.

    Args:
        path: bundle directory.
        verify: check the SHA-256 of every file (the sizes are always checked).

    Raises:
        BundleError: the bundle or a graph in it cannot be used.
    """
    from crispseg.bundle import bundle_facts, load_bundle

    bundle = load_bundle(str(path), verify=verify)
    networks, warnings = [], []
    for part in ("base", "baseline", "refiner"):
        info = getattr(bundle, part)
        if info is None:
            continue
        if info.random_weights:
            warnings.append(_RANDOM.format(part))
        row = {
            "part": part,
            "architecture": getattr(info, "architecture", None) or info.kind,
            "file": info.file,
            "size": f"{getattr(info, 'height', bundle.height)}x{getattr(info, 'width', bundle.width)}",
            **graph_facts(bundle.path / info.file),
        }
        networks.append(row)
    for role, entry in (bundle.calibration.networks if bundle.calibration else {}).items():
        info = getattr(bundle, role)
        networks.append(
            {
                "part": f"{role}, int8",
                "architecture": getattr(info, "architecture", None) or info.kind,
                "file": entry.file,
                "size": f"{getattr(info, 'height', bundle.height)}x{getattr(info, 'width', bundle.width)}",
                **graph_facts(bundle.path / entry.file),
            }
        )
        if entry.synthetic:
            warnings.append(f"the int8 {role} was calibrated on random data (--synthetic): not for use")
    return new_report(
        "inspect",
        bundle={
            **bundle_facts(bundle),
            "verified": verify,
            "size": f"{bundle.height}x{bundle.width}",
            "ignore_label": bundle.ignore_label,
            "mib": round(sum(info.bytes for info in bundle.files.values()) / 2**20, 2),
        },
        networks=networks,
        settings={
            part: _settings(getattr(bundle, part))
            for part in ("base", "baseline", "refiner")
            if getattr(bundle, part) is not None
        },
        classes=[
            {"id": index, "name": info.name, "color": list(info.color)} for index, info in enumerate(bundle.classes)
        ],
        files=[
            {"file": name, "mib": round(info.bytes / 2**20, 3), "sha256": info.sha256}
            for name, info in bundle.files.items()
        ],
        provenance=dict(bundle.provenance),
        calibration=bundle_calibration.facts(bundle, "int8"),
        warnings=warnings,
    )


def graph_facts(path: Any) -> dict:
    """Parameters, operators and opset of an ONNX file; all None when the onnx package is absent.

    Parameters are those of the network: scales and zero points of a quantised file are not counted.

    Raises:
        BundleError: the file is not an ONNX graph.
    """
    try:
        import onnx
    except ImportError:
        return {"parameters": None, "nodes": None, "opset": None, "operators": None}
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own exception types differ between its versions
        raise BundleError(f"{path}: expected an ONNX graph, found: {error}; export the bundle again") from None
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {name for node in pairs for name in node.input[1:]}
    parameters = 0
    for tensor in model.graph.initializer:
        size = 0 if tensor.name in scales else 1
        for length in tensor.dims:
            size *= length
        parameters += size
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    opset = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    return {
        "parameters": parameters,
        "nodes": len(model.graph.node),
        "opset": opset,
        "operators": dict(operators.most_common()),
    }


def _settings(info: Any) -> dict:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(info).items()}
