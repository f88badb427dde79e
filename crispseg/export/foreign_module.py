"""A base from any importable factory: ``--module package.module:factory --weights F``.

The factory is the user's own code and runs here. Its weights are loaded strictly, as those of the catalog.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crispseg.errors import InputError
from crispseg.export.foreign_probe import FLOOR, LOGARITHM, is_probability
from crispseg.export.provenance import checkpoint_notes
from crispseg.export.sources import Foreign, Torch, foreign_info
from crispseg.models.bases.padding import padded
from crispseg.models.checkpoints import load_checkpoint, load_strict

_CLASS_ARGUMENTS = ("num_classes", "classes", "n_classes")


class Picked(nn.Module):
    """Returns one of the things that a network returns, with key None all of it, as float32."""

    def __init__(self, module: nn.Module, key: Any) -> None:
        super().__init__()
        self.module = module
        self.key = key

    def forward(self, image: Tensor) -> Tensor:
        """[1,3,H,W] -> logits [1,C,h,w]."""
        found = getattr(self.module, "forward_logits", self.module)(image)
        return (found if self.key is None else found[self.key]).float()


class LogProbabilities(nn.Module):
    """Turns the probabilities that a network returns into logits: a softmax over the classes gives them back."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        """[1,3,H,W] -> logits [1,C,h,w]."""
        return torch.log(torch.clamp(self.module(image), min=FLOOR))


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
    key, logits = _logits(module, num_classes, (height, width), base.output, assumed)
    picked = Picked(module, key).eval()
    noise = _noise((height, width))

    def run(gain: float) -> np.ndarray:
        with torch.no_grad():
            return picked(noise * gain).numpy()

    chosen = module if key is None and logits.dtype == torch.float32 else picked
    if logits.dtype != torch.float32:
        assumed.append(f"the logits are brought from {str(logits.dtype).rpartition('.')[2]} to float32")
    if is_probability(run):
        assumed.append(LOGARITHM)
        chosen = LogProbabilities(picked).eval()
    return chosen, max(1, round(height / logits.shape[2]))


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


def _noise(size: tuple[int, int]) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


def _logits(
    module: nn.Module, num_classes: int, size: tuple[int, int], wanted: str | None, assumed: list[str]
) -> tuple[Any, Tensor]:
    """(key of the logits in what the module returns or None, the logits of a noise image)."""
    image = _noise(size)
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
    listing = "; ".join(("" if k is None else f"{k}: ") + _describe(v) for k, v in items.items()) or _describe(found)
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
            f"network output: expected logits [1,{num_classes},h,w], found {listing}; {_remedy(items.values())}"
        )
    if len(chosen) > 1:
        raise InputError(f"network output: {listing}: several could be the logits; say which with --output")
    logits = items[chosen[0]]
    if chosen[0] is not None and wanted is None:
        assumed.append(f"the logits are output {chosen[0]!r} of {listing} (--output)")
    return chosen[0], logits


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
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = "" if value.is_floating_point() else f" {str(value.dtype).rpartition('.')[2]}"
    return f"{list(value.shape)}{kind}"


def _remedy(values: Iterable[Any]) -> str:
    """What to do about a network none of whose results could be logits."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return "return a tensor, or a dictionary or tuple of tensors"
    if any(not value.is_floating_point() for value in tensors):
        return "whole numbers are labels: export the network without its argmax"
    if any(value.dim() == 4 and value.shape[1] == 1 for value in tensors):
        return "one channel tells two classes apart by a sigmoid: return two channels, one for each"
    return "--classes must name as many classes as the network has"
