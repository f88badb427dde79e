"""The list of bases as a report: `crispseg bases`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Dict, List

from crispseg.models.bases.catalog import BASES
from crispseg.report import new_report

_DEFINITIONS = {
    "parameters": "numbers that the logits of 19 classes depend on; auxiliary training heads are not among them",
    "gmac": "multiply-accumulates of convolutions and matrix products at 1024x2048 with 19 classes, in 1e9; resizing, "
    "pooling, warping and BatchNorm are not counted",
    "stride": "of the logits that an exported base gives; 1 = it ends at the size of its input",
    "pad_to": "sides of the image that the network sees are multiples of it; the exported graph pads with zeros after "
    "normalisation, right and bottom, and crops the logits",
    "classes": "of the published weights; a base can be built with any number from 2 to 255",
    "figures": "what the authors publish (source), not measured here: mIoU in percent, frames/s by device; null where "
    "the source says nothing",
    "droppable": "regular expressions of checkpoint keys that no logit depends on; every other key must fit",
    "mean": "subtracted from the image (0..255) before the base; then it is divided by std",
}


def list_bases() -> Dict[str, Any]:
    """A report of kind "bases": one record for each base that can be exported by name. Needs no torch."""
    rows: List[Dict[str, Any]] = []
    for info in BASES.values():
        row = asdict(info)
        macs = row.pop("macs")
        row["parameters"] = row["parameters"] or None
        row["gmac"] = macs / 1e9 if macs else None
        row["figures"] = [{**f, "fps": dict(f["fps"])} for f in row["figures"]]
        rows.append(row)
    report = new_report("bases", bases=rows)
    report["definitions"] = dict(_DEFINITIONS)
    return report
