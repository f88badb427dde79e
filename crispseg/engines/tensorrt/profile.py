"""Where an engine's time goes: times of its layers, and what the inspector says of their types and formats."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Dict, List, Mapping

import numpy as np

from crispseg.engines.tensorrt import compat
from crispseg.errors import InputError

_WORDS = "FP32 FP16 BF16 FP8 FP4 INT8 INT4 INT32 INT64 UINT8 BOOL Float Half BFloat16 Int8 Int32 Int64 UInt8 Bool"
_TYPE = re.compile(r"\b(%s)\b" % _WORDS.replace(" ", "|"))
_NAMES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16"}


def layer_times(engine: Any, inputs: Mapping[str, np.ndarray], runs: int = 20, warmup: int = 5) -> List[Dict[str, Any]]:
    """Times of the layers over some runs: name, median ms, share of the sum in percent, longest first.

    Args:
        engine: run.TensorRTEngine; keep it for this alone, profiled runs are slower.
        inputs: of every run.
        runs: measured runs.
        warmup: runs before them.
    """
    if runs < 1:
        raise InputError("runs: expected at least 1, found %d" % runs)
    times: Dict[str, List[float]] = {}
    measured: List[Dict[str, float]] = [{}]

    def report(name: str, ms: float) -> None:
        # A layer that is listed twice (a reformat) adds up within a run.
        measured[-1][name] = measured[-1].get(name, 0.0) + float(ms)

    profiler = compat.make_profiler(engine.trt, report)
    engine.set_profiler(profiler)
    for index in range(warmup + runs):
        measured.append({})
        engine.run(inputs)
        if index >= warmup:
            for name, ms in measured[-1].items():
                times.setdefault(name, []).append(ms)
    rows: List[Dict[str, Any]] = [
        {"layer": name, "ms": round(float(np.median(values)), 4)} for name, values in times.items()
    ]
    whole = sum(row["ms"] for row in rows) or 1.0
    for row in rows:
        row["share"] = round(100 * row["ms"] / whole, 2)
    return sorted(rows, key=lambda row: -row["ms"])


def examine(engine: Any, runs: int = 20) -> Dict[str, Any]:
    """Times of an engine's layers on made-up inputs (noise, so that a refiner finds work), with their types.

    Args:
        engine: run.TensorRTEngine, for this alone.
        runs: measured runs.

    Returns:
        ``layers`` (of :func:`layer_times`, each with its type), ``sum_ms``, and what :func:`summary` finds.
    """
    random = np.random.default_rng(0)
    inputs = {}
    for name, (dtype, shape) in engine.inputs.items():
        noise = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 1 << 30, shape)
        inputs[name] = noise.astype(dtype)
    text = engine.inspect()
    rows = layer_times(engine, inputs, runs)
    types = {}
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, dict):
            types[str(layer.get("Name", ""))] = (_precision(layer), str(layer.get("LayerType", "")))
    for row in rows:
        row["precision"], row["kind"] = types.get(row["layer"], ("unknown", ""))
    return {
        **summary(text),
        "layer_count": len(rows),
        "sum_ms": round(sum(row["ms"] for row in rows), 3),
        "layers": rows,
    }


def summary(text: str) -> Dict[str, Any]:
    """What the inspector's JSON says of an engine.

    Returns:
        ``layers``: how many; ``precision``: layers by the type of their first output; ``reformats``: names of layers
        that only change a format; ``plugins``: names of the plugin layers; ``detailed``: False for an engine that
        was built without details (types are then unknown).

    Raises:
        InputError: no JSON of the inspector.
    """
    try:
        listed = json.loads(text)["Layers"]
        if not isinstance(listed, list):
            raise TypeError("no list")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("engine inspector: expected JSON with Layers, found %r (%s)" % (text[:40], error)) from None
    precision: Dict[str, int] = Counter()
    reformats, plugins = [], []
    for layer in listed:
        detailed = isinstance(layer, dict)
        name = str(layer.get("Name", "")) if detailed else str(layer)
        kind = str(layer.get("LayerType", "")) if detailed else ""
        if "reformat" in kind.lower() or "reformat" in name.lower():
            reformats.append(name)
        if "plugin" in kind.lower() or (detailed and layer.get("PluginType")):
            plugins.append(name)
        precision[_precision(layer)] += 1
    return {
        "layers": len(listed),
        "precision": dict(sorted(precision.items())),
        "reformats": reformats,
        "plugins": plugins,
        "detailed": any(isinstance(layer, dict) for layer in listed),
    }


def _precision(layer: Any) -> str:
    """Type of a layer's first output; versions write it in their own ways ("Row major linear FP32", "Half")."""
    outputs = layer.get("Outputs") if isinstance(layer, dict) else None
    first = outputs[0] if isinstance(outputs, list) and outputs else None
    found = _TYPE.search(str(first.get("Format/Datatype", ""))) if isinstance(first, dict) else None
    if found is None:
        return "unknown"
    name = found.group(1).lower()
    return _NAMES.get(name, name)
