"""A base from any importable factory: ``--module package.module:factory --weights F``.

The factory is the user's own code and runs here. Its weights are loaded strictly, as those of the catalog.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crispseg.errors import InputError
from crispseg.export.provenance import checkpoint_notes
from crispseg.export.sources import Foreign, Torch, foreign_info
from crispseg.models.bases.padding import padded
from crispseg.models.checkpoints import load_checkpoint, load_strict

_CLASS_ARGUMENTS = ("num_classes", "classes", "n_classes")


class Picked(nn.Module):
    """Returns one of the things that a network returns."""

    def __init__(self, module: nn.Module, key: Any) -> None:
        super().__init__()
        self.module = module
        self.key = key

    def forward(self, image: Tensor) -> Tensor:
        """[1,3,H,W] -> logits [1,C,h,w]."""
        return getattr(self.module, "forward_logits", self.module)(image)[self.key]


def open_module(base: Foreign, num_classes: int, weights: str | Path | None, size: tuple[int, int]) -> Torch:
    """Build the module that the factory makes, load its weights, and find its logits.

    Raises:
        InputError: the factory cannot be imported or called, or returns nothing that could be logits.
        CheckpointError: the checkpoint does not fit.
    """
    spec = str(base.module)
    assumed: list[str] = []
    module = _call(spec, num_classes, dict(base.arguments), assumed).eval()
    notes: dict[str, Any] = {"module": spec, "arguments": {k: repr(v) for k, v in base.arguments.items()}}
    if weights is None:
        if base.droppable:
            raise InputError("--drop: expected --weights with it, found none; leave it out")
        assumed.append("the weights are those that the factory returns (--weights)")
    else:
        dropped = load_strict(module, load_checkpoint(weights), base.droppable, str(weights))
        notes.update(checkpoint_notes(weights, dropped))
    net, stride = choose_logits(module, base, num_classes, size, assumed)
    info = foreign_info(base, spec.rpartition(":")[2], stride, assumed)
    notes.update(stride=stride, assumed=assumed)
    return Torch(padded(net, info).eval(), info, False, notes)


def choose_logits(
    module: nn.Module, base: Foreign, num_classes: int, size: tuple[int, int], assumed: list[str]
) -> tuple[nn.Module, int]:
    """(the module, or one that picks the logits out of what it returns; stride of the logits).

    Args:
        module: the network in evaluation mode.
        base: what its user says of it: which output, and what sides it wants.
        num_classes: of the logits.
        size: of the image.
        assumed: sentences are added about what was not said.

    Raises:
        InputError: nothing, or several things, that the module returns could be the logits.
    """
    if base.pad_to < 1:
        raise InputError(f"--pad {base.pad_to}: expected 1 or more")
    height, width = (-(-side // base.pad_to) * base.pad_to for side in size)
    key, shape = _logits(module, num_classes, (height, width), base.output, assumed)
    return (module if key is None else Picked(module, key).eval()), max(1, round(height / shape[2]))


def _call(spec: str, num_classes: int, arguments: dict[str, Any], assumed: list[str]) -> nn.Module:
    package, _, name = spec.partition(":")
    if not package or not name:
        raise InputError(f"--module {spec}: expected package.module:factory")
    here = os.getcwd()
    added = here not in sys.path
    if added:  # as "python -m" does
        sys.path.insert(0, here)
    try:
        factory: Any = importlib.import_module(package)
        for part in name.split("."):
            factory = getattr(factory, part)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, a script without a guard may exit
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise InputError(
            f"--module {spec}: cannot be imported: {kind}{error}; run crispseg in the folder that holds it, or install "
            "it"
        ) from None
    finally:
        if added:
            sys.path.remove(here)
    if not callable(factory):
        raise InputError(f"--module {spec}: expected a function or a class, found a {type(factory).__name__}")
    given = set(_CLASS_ARGUMENTS) & set(arguments)
    accepted = [n for n in _CLASS_ARGUMENTS if n in _parameters(factory)]
    if accepted and not given:
        arguments[accepted[0]] = num_classes
        assumed.append(f"{name} takes {accepted[0]}={num_classes}")
    try:
        module = factory(**arguments)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(f"--module {spec}: {name}(...) failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"--module {spec}: expected a torch.nn.Module, found a {type(module).__name__}")
    return module


def _parameters(factory: Any) -> Mapping[str, Any]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}


def _logits(
    module: nn.Module, num_classes: int, size: tuple[int, int], wanted: str | None, assumed: list[str]
) -> tuple[Any, tuple[int, ...]]:
    """(key of the logits in what the module returns or None, their shape)."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    call = getattr(module, "forward_logits", module)
    try:
        with torch.no_grad():
            found = call(image)
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise InputError(
            f"network on an image 1x3x{size[0]}x{size[1]}: {type(error).__name__}: {text}; "
            "if it needs other sides, change --size or --scale, or give --pad with the number that divides them"
        ) from error
    items = _items(found)
    listing = "; ".join(f"{k}: {_describe(v)}" for k, v in items.items()) or _describe(found)
    fitting = [k for k, v in items.items() if _fits(v, num_classes)]
    if wanted is not None:
        chosen = [k for k in items if str(k) == wanted]
        if not chosen:
            raise InputError(f"--output {wanted}: expected one of {listing}")
        if chosen[0] not in fitting:
            raise InputError(f"--output {wanted}: expected logits [1,{num_classes},h,w], found {listing}")
    else:
        chosen = fitting if len(fitting) == 1 or "out" not in fitting else ["out"]
    if not chosen:
        raise InputError(
            f"network output: expected logits [1,{num_classes},h,w], found {listing}; --classes must name as many "
            "classes as the network has"
        )
    if len(chosen) > 1:
        raise InputError(f"network output: {listing}: several could be the logits; say which with --output")
    logits = items[chosen[0]]
    refuse_probabilities(logits.min().item(), logits.max().item(), logits.sum(1))
    if chosen[0] is None:
        return None, tuple(logits.shape)
    if wanted is None:
        assumed.append(f"the logits are output {chosen[0]!r} of {listing} (--output)")
    return chosen[0], tuple(logits.shape)


def _items(found: Any) -> dict[Any, Any]:
    if isinstance(found, Tensor):
        return {None: found}
    if isinstance(found, Mapping):
        return dict(found)
    if isinstance(found, (tuple, list)):
        return dict(enumerate(found))
    return {}


def _fits(value: Any, num_classes: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() == 4
        and value.is_floating_point()
        and value.shape[:2] == (1, num_classes)
    )


def _describe(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def refuse_probabilities(low: float, high: float, sums: Any) -> None:
    """Refuse an output that went through a softmax already: its entropy would be wrong.

    Raises:
        InputError: all values lie in 0..1 and those of each pixel sum to 1.
    """
    if low >= 0 and high <= 1 and float(abs(sums - 1).max()) < 1e-3:
        raise InputError(
            "network output: expected logits, found probabilities (they sum to 1 at every pixel); export the network "
            "without its softmax"
        )
