"""What `crispseg calibrate --check-fp16` does: the base in float16 through the same gate as int8."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional

from crispseg.bundle import bundle_facts, load_bundle, write_bundle
from crispseg.cli_calibrate_bundle import Choices, Progress, for_role, image_set, measure_gate
from crispseg.errors import InputError

FILE = "base.fp16.onnx"


def check_half(path: Path, images: Optional[Path], choices: Choices, progress: Progress) -> Dict[str, Any]:
    """Measure what the cast costs; writes nothing. The refiner stays as it is.

    Raises:
        InputError: images or layers that cannot be used, or a weight beyond float16.
        AccuracyGate: it costs more than ``choices.gate`` points.
    """
    from crispseg.calibration import base, gate
    from crispseg.environment import environment
    from crispseg.export.passes.fp16 import KEEP, to_fp16
    from crispseg.report import new_report

    loaded = load_bundle(path)
    chosen = image_set(loaded, images, choices)
    model = base.read_dense(loaded.file(loaded.base.file))
    names = {node.name for node in model.graph.node}
    exclude = for_role(choices.exclude, "base")
    missing = [name for name in exclude if name not in names]
    if missing:
        raise InputError("--exclude %s: no node of that name in %s" % (missing[0], loaded.base.file))
    done = to_fp16(model, keep=KEEP | frozenset(choices.keep_ops), keep_nodes=frozenset(exclude))
    with tempfile.TemporaryDirectory(prefix="crispseg-fp16-") as folder:
        candidate = write_bundle(
            Path(folder) / "bundle",
            name=loaded.name,
            height=loaded.height,
            width=loaded.width,
            classes=loaded.classes,
            base=dataclasses.replace(loaded.base, file=FILE),
            refiner=loaded.refiner,
            files={
                FILE: base.to_bytes(model),
                **({} if loaded.refiner is None else {loaded.refiner.file: loaded.file(loaded.refiner.file)}),
            },
        )
        result = measure_gate(loaded, candidate, images, chosen, choices, progress, precision="fp32")
    gate.require(result, "fp16")
    return new_report(
        "calibrate",
        source=bundle_facts(loaded),
        precision="fp16",
        nodes_in_half=done.half,
        nodes_in_float=len(done.kept),
        casts=done.casts,
        images={"count": chosen.count, "sha256": chosen.sha256, "synthetic": chosen.synthetic, "seed": choices.seed},
        gate=result,
        environment=environment(choices.threads),
    )
