"""The options of export that describe a network outside the catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List, Optional, Tuple

import typer

from crispseg.errors import InputError

MODULE = typer.Option(None, "--module", help="package.module:factory of any torch network", show_default=False)
ARGUMENTS = typer.Option(None, "--module-args", help="JSON for the factory: '{\"width\": 64}'", show_default=False)
DROP = typer.Option([], "--drop", help="pattern of checkpoint keys that --module may lack; may be repeated")
ONNX = typer.Option(None, "--onnx", help="any ONNX network: one image in, logits out", show_default=False)
OUTPUT = typer.Option(None, "--output", help="key, index or name of the logits (--module, --onnx)", show_default=False)
MEAN = typer.Option(None, "--mean", help="of --module and --onnx, units of 0..255; default: ImageNet's")
STD = typer.Option(None, "--std", help="of --module and --onnx, units of 0..255; default: ImageNet's")
CHANNELS = typer.Option(None, "--channels", help="rgb or bgr (--module, --onnx); default: rgb")
UPSAMPLE = typer.Option(
    None, "--base-upsample", help="bilinear, bilinear_corners or nearest (--module, --onnx); default: bilinear"
)
PAD = typer.Option(
    1, "--pad", min=1, help="sides must be multiples of it: the graph pads the image, crops the logits (--module)"
)
#: Prefixes of names that an installed library knows.
LIBRARIES = ("torchvision:", "smp:")


def chosen_base(
    name: Optional[str],
    module: Optional[str],
    onnx: Optional[Path],
    arguments: Optional[str],
    drop: List[str],
    output: Optional[str],
    mean: Optional[str],
    std: Optional[str],
    channels: Optional[str],
    upsample: Optional[str],
    pad: int = 1,
) -> Any:
    """The base of an export: a name of the catalog, or a ``Foreign``.

    Raises:
        InputError: none or several of BASE, --module and --onnx; or an option that does not belong to it.
    """
    given = [text for text, value in (("BASE", name), ("--module", module), ("--onnx", onnx)) if value is not None]
    if len(given) != 1:
        raise InputError(
            f"expected one of BASE, --module and --onnx, found {' and '.join(given) or 'none'}; "
            "crispseg bases lists the names; torchvision:NAME and smp:ARCHITECTURE:ENCODER are names, too"
        )
    extra = (
        ("--module-args", arguments),
        ("--drop", drop),
        ("--output", output),
        ("--mean", mean),
        ("--std", std),
        ("--channels", channels),
        ("--base-upsample", upsample),
        ("--pad", pad > 1),
    )
    library = name if name is not None and name.startswith(LIBRARIES) else None
    if name is not None and library is None:
        wrong = [option for option, value in extra if value]
        if wrong:
            raise InputError(f"{', '.join(wrong)}: only with --module or --onnx; {name} says all that itself")
        return name
    if onnx is not None and (arguments or drop or pad > 1):
        raise InputError("--module-args, --drop and --pad: only with --module")
    from crispseg.export.sources import Foreign

    return Foreign(
        module=module,
        onnx=onnx,
        library=library,
        arguments=_arguments(arguments),
        output=output,
        mean=_three(mean, "--mean"),
        std=_three(std, "--std"),
        channel_order=channels,
        upsample=upsample,
        droppable=tuple(drop),
        pad_to=pad,
    )


def _arguments(text: Optional[str]) -> dict:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"--module-args {text!r}: expected JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"--module-args {text!r}: expected an object, for example '{{\"width\": 64}}'")
    return found


def _three(text: Optional[str], option: str) -> Optional[Tuple[float, float, float]]:
    if text is None:
        return None
    try:
        a, b, c = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r}: expected three numbers, for example 123.7,116.3,103.5") from None
    return a, b, c
