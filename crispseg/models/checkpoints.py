"""Read official checkpoints safely and load them strictly.

A checkpoint is untrusted: only ``torch.load(weights_only=True)`` reads it, with one optional addition, the numpy
scalar that several training codes leave beside the weights. Loading is strict, because a silently skipped key gives
a random network and no error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crispseg.errors import CheckpointError, InputError

#: Names under which training codes wrap the weights, tried in this order.
WRAPPERS = ("state_dict", "model")
#: Prefixes of wrapping modules (DataParallel, Lightning); one is removed when every key carries it.
PREFIXES = ("module.", "model.")
_SHOWN = 4


@contextmanager
def _allow_numpy_scalar(enabled: bool) -> Iterator[None]:
    """Let the safe unpickler rebuild a numpy float or integer scalar, under its numpy 1 and numpy 2 names."""
    if not enabled:
        yield
        return
    scalar = np.float64(0).__reduce__()[0]
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_)
    allowed: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in kinds)]
    allowed += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals(allowed):
        yield


def _strip_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return {key[len(prefix) :]: value for key, value in state.items()}
    return state


def load_checkpoint(path: str | Path, allow_numpy_scalar: bool = True) -> dict[str, Tensor]:
    """Weights of a checkpoint file by their bare key, on the CPU.

    Accepts a bare state dict or one wrapped as ``{"state_dict": ...}`` or ``{"model": ...}``; removes one common
    prefix ("module." or "model.") when all keys carry it. Nothing in the file is executed.

    Args:
        path: a file written by ``torch.save``.
        allow_numpy_scalar: accept numpy float and integer scalars beside the weights (SFSegNets keeps its mean IoU so).

    Returns:
        key -> tensor, in the order of the file.

    Raises:
        CheckpointError: the file is missing, truncated, holds other objects, or holds no weights.
    """
    path = Path(path)
    return _weights_of(path, _read(path, allow_numpy_scalar))


def load_config(path: str | Path) -> dict[str, Any]:
    """The plain ``config`` that ``crispseg fit`` stores beside the weights; empty when the file has none.

    Raises:
        CheckpointError: the file is missing or damaged, or its config is not a dict of numbers, texts and lists.
    """
    loaded = _read(Path(path), True)
    config = loaded.get("config", {}) if isinstance(loaded, Mapping) else {}
    plain = (str, int, float, bool, type(None))
    if not isinstance(config, dict) or not all(
        isinstance(key, str) and all(isinstance(v, plain) for v in (value if isinstance(value, list) else [value]))
        for key, value in config.items()
    ):
        raise CheckpointError(f"{path}: expected a config of numbers, texts and lists, found something else")
    return config


def load_training(path: str | Path) -> dict[str, Any]:
    """The record of the run (``training``) that ``crispseg fit`` stores beside the weights; empty without one.

    Raises:
        CheckpointError: the file is missing or damaged, or the record cannot be written as JSON.
    """
    loaded = _read(Path(path), True)
    record = loaded.get("training", {}) if isinstance(loaded, Mapping) else {}
    try:
        plain = json.loads(json.dumps(record, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a training record of plain values, found {error}") from None
    return plain if isinstance(plain, dict) else {}


def _read(path: Path, allow_numpy_scalar: bool) -> Any:
    """What the file holds, by the safe unpickler."""
    if not path.is_file():
        what = "nothing there" if not path.exists() else "a folder" if path.is_dir() else "a pipe or device"
        raise CheckpointError(f"{path}: expected a checkpoint file, found {what}; check the path")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: expected a PyTorch checkpoint, found an empty file; download it again")
    try:
        with _allow_numpy_scalar(allow_numpy_scalar):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the unpickler and zip reader raise almost any type on damaged bytes
        reason = str(error).strip().splitlines()
        blocked = re.search(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)|GLOBAL ([\w.]+)", str(error))
        if blocked:
            name = blocked.group(1) or blocked.group(2)
            what = f"{name} (MMEngine's record of the training)" if name.startswith("mmengine.") else name
            raise CheckpointError(
                f"{path}: expected only tensors, numbers and containers, found {what}, which only code can rebuild; "
                'where you trust the file, keep its weights alone: python -c "import torch; '
                f"c = torch.load('{path.name}', map_location='cpu', weights_only=False); "
                "torch.save({'state_dict': c.get('state_dict', c)}, 'weights.pth')\""
            ) from error
        if "Unsupported operand" in str(error):
            raise CheckpointError(
                f"{path}: expected only tensors, numbers and containers, found other objects; "
                "save the bare state dict (torch.save(model.state_dict(), ...)) and use that file"
            ) from error
        detail = reason[0][:160] if reason else type(error).__name__
        raise CheckpointError(
            f"{path}: expected a PyTorch checkpoint, found a truncated or foreign file ({detail}); download it again"
        ) from error
    return loaded


def _weights_of(path: Path, loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, found a {type(loaded).__name__}")
    for name in WRAPPERS:
        if isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
            break
    state: dict[str, Tensor] = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: expected names with tensors, found {key!r} holding a {type(value).__name__}; "
                "the weights must lie at the top, under 'state_dict' or under 'model'"
            )
        if value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(f"{path}: expected plain tensors, found a sparse or quantised one at {key!r}")
        state[key] = value
    if not state:
        raise CheckpointError(f"{path}: expected weights, found an empty state dict")
    return _strip_prefix(state)


def _some(title: str, items: list[str]) -> str:
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {title}: {', '.join(items[:_SHOWN])}{more}"


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    droppable: Iterable[str] = (),
    source: str = "checkpoint",
    refused: tuple[str, str] | None = None,
) -> list[str]:
    """Load `state` into `module`; every key must be there, with the right shape, and finite.

    Args:
        module: receives the weights; untouched when an error is raised.
        state: key -> tensor, as ``load_checkpoint`` returns it. Floating dtypes are converted to the module's.
        droppable: regular expressions (matched from the start of the key) of keys that may be in the file although
            the module lacks them, such as auxiliary training heads.
        source: name of the file for the message.
        refused: regular expression of keys that tell a file of another layout, and the sentence that says so.

    Returns:
        The keys that were dropped.

    Raises:
        CheckpointError: names the first few missing, extra, misshaped or non-finite keys, with their counts; or the
            file is of a refused layout.
    """
    if refused is not None:
        found = next((key for key in state if re.match(refused[0], key)), None)
        if found is not None:
            raise CheckpointError(f"{source}: {refused[1]}; found key {found}")
    own = module.state_dict()
    try:
        patterns = [re.compile(pattern) for pattern in droppable]
    except re.error as error:
        raise InputError(f"pattern of keys to drop: expected a regular expression, found an error: {error}") from None
    extra = [key for key in state if key not in own]
    dropped = [key for key in extra if any(pattern.match(key) for pattern in patterns)]
    unknown = sorted(set(extra) - set(dropped))
    # Counters of BatchNorm steps are absent from old files and have no part in the result.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    shared = [key for key in own if key in state]
    misshaped = [
        f"{key} (expected {list(own[key].shape)}, found {list(state[key].shape)})"
        for key in shared
        if own[key].shape != state[key].shape
    ]
    bad = [key for key in shared if state[key].is_floating_point() and not bool(torch.isfinite(state[key]).all())]
    problems = [
        _some(title, items)
        for title, items in (
            ("missing", missing),
            ("not expected", unknown),
            ("of another shape", misshaped),
            ("not finite", bad),
        )
        if items
    ]
    if problems:
        remedy = "Choose the architecture and settings the file was trained with"
        if not missing and not unknown:
            remedy = (
                "Choose the settings it was trained with (--classes, where the last layer differs)"
                if misshaped
                else "Its training diverged or the file is damaged: take another one"
            )
        raise CheckpointError(
            f"{source}: expected the {len(own)} keys of {type(module).__name__}, found {len(state)}; "
            f"{'; '.join(problems)}. {remedy}"
        )
    module.load_state_dict({key: state.get(key, own[key]) for key in own}, strict=True)
    return dropped
