"""The figures of a run against what was set out to reach."""

from __future__ import annotations

from typing import Any, Dict, List, Optional


def targets(sections: Dict[str, Any], real: bool) -> List[Dict[str, Any]]:
    """Rows of {"what", "measured", "target", "met"}; measured and met are None where a section did not run.

    Times of an emulated driver (``real`` False) meet and miss nothing.
    """

    def get(section: str, *path: str) -> Optional[float]:
        value = sections.get(section, {}).get("result")
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return float(value) if isinstance(value, (int, float)) else None

    rows = [
        row(
            "refiner, logits to labels, fp16, graph replay, ms",
            get("refiner", "fp16", "gpu_compute_ms", "median"),
            4.0,
            True,
        ),
        row("share of SparseConv2d in the refiner's time", get("refiner", "fp16", "conv_share"), 0.6, False),
        row(
            "convolutions with C >= 128: share of the dense fp16 matrix rate",
            get("layers", "wide_of_dense"),
            0.35,
            False,
        ),
        row("int8 refiner: times as fast as fp16", get("refiner", "int8_speedup"), 1.0, False),
        row("selection and maps of all levels, ms", get("refiner", "fp16", "select_and_maps_ms"), 0.4, True),
        row("torch gather + matmul + scatter, times of ours", get("rivals", "ratios", "torch_scatter_ms"), 2.0, False),
        row("spconv's implicit GEMM (fp16), times of ours", get("rivals", "ratios", "spconv_ms"), 2.0, False),
        row("base at full size, times of base at half size and refiner", get("pipeline", "speedup"), 1.5, False),
        row("host time to launch a frame's refinement, ms", get("refiner", "fp16", "enqueue_ms", "median"), 0.1, True),
    ]
    return rows if real else [{**entry, "met": None} for entry in rows]


def row(what: str, measured: Optional[float], target: float, at_most: bool) -> Dict[str, Any]:
    """One figure."""
    met = None if measured is None else measured <= target if at_most else measured >= target
    return {"what": what, "measured": measured, "target": ("<= " if at_most else ">= ") + str(target), "met": met}


def text(row: Dict[str, Any]) -> str:
    """One line of a row."""
    verdict = {None: "", True: "met", False: "MISSED"}[row["met"]]
    measured = "-" if row["measured"] is None else "%.4g" % row["measured"]
    return "%-66s %10s  (%s)  %s" % (row["what"], measured, row["target"], verdict)
