"""Options that a choice has no use for: refused when they stand on the command line, never silently ignored."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Mapping

from crispseg.errors import InputError

_GPU = ("cuda", "tensorrt")
#: `crispseg build`: what some backends alone read.
BUILD = {
    "native": ("deterministic",),
    "cuda": ("baseline", "device"),
    "tensorrt": (
        "workspace", "timing_cache", "opt_level", "profile", "dla", "calibration_cache", "capacity", "refiner_engine",
        "baseline", "device",
    ),
}  # fmt: skip
#: `crispseg fit`: what belongs to one kind of network alone.
FIT = {
    "refiner": (
        "base", "base_name", "bundle", "planes", "repeats", "features", "extent", "ensembler", "density", "threshold",
        "iou_weight", "logit_noise",
    ),
    "base": ("stride",),
}  # fmt: skip
#: `crispseg fit refiner --bundle`: what the bundle says itself.
FIT_BUNDLE = ("base", "base_name", "size", "scale", "classes")


def refuse_unused(context: Any, unused: Mapping[str, str]) -> None:
    """Raise InputError for the first parameter of a command that was given although nothing would read it.

    ``context``: typer's, of the command. ``unused``: parameter -> what it would need, as "expected ..., found ...".
    """
    for name, why in unused.items():
        if str(context.get_parameter_source(name)).endswith("COMMANDLINE"):
            raise InputError(f"--{name.replace('_', '-')}: {why}; leave it out")


def of_backend(backend: str) -> Dict[str, str]:
    """What run, latency and eval cannot use on a backend."""
    if backend in _GPU:
        why = f"expected --backend native or onnxruntime with it, found {backend}"
        return {"provider": why, "threads": why}
    return {"device": f"expected --backend cuda or tensorrt with it, found {backend}, which runs on no numbered GPU"}


def of_build(backend: str) -> Dict[str, str]:
    """What crispseg build cannot use on a backend."""
    found = {}
    for name in (name for names in BUILD.values() for name in names):
        takers = [other for other, names in BUILD.items() if name in names]
        if backend not in takers:
            found[name] = f"expected --backend {' or '.join(takers)} with it, found {backend}"
    return found


def of_pictures(saved: Iterable[str]) -> Dict[str, str]:
    """What run cannot use when no overlay is drawn. ``saved``: the items of --save."""
    items = list(saved)
    if "overlay" in items:
        return {}
    why = f"expected overlay in --save, found {','.join(items) or 'nothing'}"
    return {name: why for name in ("alpha", "outline", "legend")}


def of_training(what: str, bundle: bool = False) -> Dict[str, str]:
    """What crispseg fit cannot use: the options of the other kind of network, and what a bundle says itself."""
    said = {name: "expected none with --bundle, which says it, found one" for name in FIT_BUNDLE if bundle}
    return {
        **said,
        **{
            name: f"belongs to crispseg fit {kind}, found fit {what}"
            for kind, names in FIT.items()
            for name in names
            if kind != what
        },
    }
