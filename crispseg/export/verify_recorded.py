"""Logits that a bundle keeps of its base: what the exported file gave, once it was found equal to its source.

They serve where the source is gone (a base made with --module or --onnx): another machine, ONNX Runtime or file must
give the same. A few whole pixels are kept, so that classes can be compared, too.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from crispseg.bundle import Bundle
from crispseg.environment import package_version
from crispseg.errors import BundleError
from crispseg.export.compare import Hop, Made, open_onnxruntime

_VALUES = 1024  # logits kept, about: 5 kB of the manifest
_AGREEMENT = 0.9  # of few pixels: a tie may fall either way


def record(model: onnx.ModelProto, threads: int = 1) -> dict[str, Any]:
    """What the provenance of a base keeps of it: logits at evenly spaced pixels on one noise image.

    The image is that of ``numpy.random.RandomState(0)``, whose numbers NumPy keeps the same for ever.
    """
    from crispseg.export import dense  # needs torch, which comparing does without

    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    (logits,) = open_onnxruntime(dense.to_bytes(model), threads).run(["logits"], {"image": _noise(shape)})
    rows = _rows(logits, max(2, _VALUES // logits.shape[1]))
    return {
        "image": "standard normal, numpy.random.RandomState(0)",
        "onnxruntime": package_version("onnxruntime"),
        "shape": list(rows.shape),
        "logits": base64.b64encode(rows.astype("<f4").tobytes()).decode("ascii"),
    }


def recorded_hop(bundle: Bundle, engine: Any, tolerance: float) -> Hop:
    """Compare the base on this machine with what was recorded; skipped for a bundle that keeps no record.

    Args:
        bundle: the bundle.
        engine: its base, open in ONNX Runtime.
        tolerance: largest allowed error of a logit, relative to the largest recorded one.

    Raises:
        BundleError: the record is damaged.
    """
    hop = Hop("base", "recorded at export -> onnxruntime", tolerance, _AGREEMENT)
    notes = bundle.provenance.get("base")
    kept = notes.get("recorded") if isinstance(notes, Mapping) else None
    if kept is None:
        hop.skipped = "the bundle keeps no recorded logits: it was exported by an older crispseg"
        return hop
    net = bundle.base
    try:
        count, classes = (int(n) for n in kept["shape"])
        data = base64.b64decode(kept["logits"], validate=True)
        wanted = np.frombuffer(data, "<f4").reshape(count, classes)
        if count < 1 or classes != len(bundle.classes) or not np.isfinite(wanted).all():
            raise ValueError(f"shape {kept['shape']}")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path}: bundle.json: provenance.base.recorded: expected logits [pixels, {len(bundle.classes)}] in "
            f"base64, found something else ({type(error).__name__}: {error}); export the bundle again"
        ) from None
    logits = engine.run({"image": _noise((1, 3, net.height, net.width))}, ["logits"])["logits"]
    found = _rows(logits, count)
    hop.frames = 1
    hop.tensors([Made("logits", "logits", "base", "float32")], {"logits": found}, {"logits": wanted})
    hop.classes(found.argmax(1), wanted.argmax(1))
    return hop


def _noise(shape: Any) -> np.ndarray:
    return np.random.RandomState(0).standard_normal(tuple(shape)).astype(np.float32)


def _rows(logits: np.ndarray, count: int) -> np.ndarray:
    """[1,C,h,w] -> [count,C]: whole pixels, evenly spaced."""
    flat = logits[0].reshape(logits.shape[1], -1)
    count = min(count, flat.shape[1])
    return np.ascontiguousarray(flat[:, np.linspace(0, flat.shape[1] - 1, count).astype(np.int64)].T)
