"""What a mask-refiner bundle holds: `crispseg inspect`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from crispseg.bundle_masks import load_mask_bundle, mask_bundle_facts
from crispseg.report import new_report
from crispseg.runtime.describe import graph_facts


def describe_masks(path: object, verify: bool = True) -> dict:
    """A report of kind "inspect"; raises BundleError. ``verify``: check the SHA-256 of every file."""
    bundle = load_mask_bundle(str(path), verify=verify)
    info = bundle.refiner
    networks = []
    for name in info.networks:
        facts = graph_facts(bundle.file(name))
        networks.append({"file": name, "mib": round(bundle.files[name].bytes / 2**20, 2), **facts})
    settings = {key: value for key, value in asdict(info).items() if value not in info.networks}
    return new_report(
        "inspect",
        bundle={
            **mask_bundle_facts(bundle),
            "verified": verify,
            "refiner": bundle.kind,
            "mib": round(sum(item.bytes for item in bundle.files.values()) / 2**20, 2),
        },
        networks=networks,
        settings=settings,
        provenance=dict(bundle.provenance),
        warnings=["random weights: made for speed studies, its masks mean nothing"] if info.random_weights else [],
    )


def show_masks(result: dict) -> Any:
    """The report in a screenful."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from crispseg.report import format_value

    bundle = result["bundle"]
    parts: list = [Text(text, style="bold white on red") for text in result["warnings"]]
    parts.append(Text(f"{bundle['name']}: mask refiner {bundle['refiner']}, {bundle['mib']:.1f} MiB", style="bold"))
    parts.append(Text(f"{bundle['path']}, SHA-256 {bundle['sha256'][:16]}"))
    table = Table("file", "parameters", "ops", "MiB", box=box.SIMPLE_HEAD, padding=(0, 1))
    for row in result["networks"]:
        parameters = "-" if row.get("parameters") is None else f"{row['parameters']:,}"
        table.add_row(row["file"], parameters, format_value(row.get("nodes")), format_value(row["mib"]))
    parts.append(table)
    parts.append(Text("; ".join(f"{key} {format_value(value)}" for key, value in result["settings"].items())))
    refiner = result["provenance"].get("refiner")
    parity = refiner.get("parity") if isinstance(refiner, dict) else None
    for hop, figures in (parity or {}).items():
        parts.append(Text(f"{hop}: {format_value(figures)}"))
    return Group(*parts)
