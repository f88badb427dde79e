"""From a name and a checkpoint file to a torch network that is ready for export.

Checkpoints of ``crispseg fit`` say what they are (``config``). Official ones say nothing: the structure is read off
the shapes. Sizes in a config are never trusted beyond what the weights in the same file confirm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crispseg.errors import CheckpointError, InputError
from crispseg.export.provenance import checkpoint_notes
from crispseg.models.bases import BaseInfo, base_info, build_base
from crispseg.models.bases.padding import padded
from crispseg.models.checkpoints import load_checkpoint, load_config, load_strict
from crispseg.models.refiners.sparserefine import SparseRefineConfig, SparseRefiner

_MAX_SETTING = 4096  # no width, depth or count of a base is larger
_MAX_LEVELS = 12


@dataclass(frozen=True)
class Network:
    """A module in evaluation mode and where its weights come from.

    Attributes:
        module: the network.
        random: True when the weights are random.
        source: file name, SHA-256, dropped keys and training record of the checkpoint, for the bundle's provenance.
    """

    module: Any
    random: bool
    source: dict[str, Any] = field(default_factory=dict)


def base_network(name: str, num_classes: int, weights: str | Path | None, seed: int = 0) -> tuple[Network, BaseInfo]:
    """The base called ``name`` with the weights of a file, or with random ones when ``weights`` is None.

    Raises:
        InputError: unknown base or impossible number of classes.
        CheckpointError: the file is not a checkpoint of this base with these classes.
    """
    info = base_info(name)
    if weights is None:
        with seeded(seed):
            module = build_base(name, num_classes)
        return Network(padded(module, info).eval(), True, {"random_weights": True, "seed": seed}), info
    state, config = load_checkpoint(weights), load_config(weights)
    if config:
        _check_settings(config, weights)
        with torch.device("meta"):
            _check_volume(build_base(name, num_classes, config, str(weights)), state, weights)
    module = build_base(name, num_classes, config or None, str(weights))
    dropped = load_strict(module, state, info.droppable, str(weights), info.refused)
    return Network(padded(module, info).eval(), False, checkpoint_notes(weights, dropped)), info


def refiner_network(
    num_classes: int,
    weights: str | Path | None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Network:
    """A SparseRefine refiner with the weights of a file, or with random ones when ``weights`` is None.

    Args:
        num_classes: classes of the base's logits.
        weights: checkpoint of ``crispseg fit``, or an official one (bare or Lightning keys).
        settings: fields of ``SparseRefineConfig`` that replace those of the file (or the defaults).
        seed: of random weights.

    Raises:
        CheckpointError: the file is not a SparseRefine checkpoint, or has other classes.
        InputError: settings that cannot be.
    """
    chosen = dict(settings or {})
    if weights is None:
        with seeded(seed):
            module = SparseRefiner(_config({"num_classes": num_classes, **chosen}, "refiner settings"))
        return Network(module.eval(), True, {"random_weights": True, "seed": seed})
    state, stored = load_checkpoint(weights), load_config(weights)
    shape = infer_structure(state, str(weights))
    if stored:
        kind = stored.pop("architecture", None)
        if kind != "sparserefine":
            raise CheckpointError(f"{weights}: expected a refiner 'sparserefine', found {kind!r}")
        for key in ("planes", "repeats", "num_classes"):
            if (list(shape[key]) if key != "num_classes" else shape[key]) != stored.get(key):
                raise CheckpointError(f"{weights}: config says {key} {stored.get(key)}, the weights say {shape[key]}")
    if shape["num_classes"] != num_classes:
        raise CheckpointError(
            f"{weights}: expected a refiner for {num_classes} classes, found {shape['num_classes']}; choose the "
            "classes it was trained with"
        )
    module = SparseRefiner(_config({**shape, **stored, **chosen}, str(weights)))
    dropped = load_strict(module, state, (), str(weights))
    return Network(module.eval(), False, checkpoint_notes(weights, dropped))


def infer_structure(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Fields of ``SparseRefineConfig`` that the shapes of a state dict fix.

    Raises:
        CheckpointError: the keys are not those of SparseRefine.
    """

    def shape(key: str, rank: int) -> tuple[int, ...]:
        if key not in state or state[key].dim() != rank:
            raise CheckpointError(f"{source}: expected a SparseRefine checkpoint with {key} of {rank} dimensions")
        return tuple(state[key].shape)

    num_classes = shape("classifier.weight", 2)[0]
    planes: list[int] = []
    repeats: list[int] = []
    here = "backbone.net.1"
    while len(planes) < _MAX_LEVELS:
        planes.append(shape(f"{here}.0.1.2.kernel", 3)[2])
        count = 0
        # Even indices hold blocks; the one that holds the level below has no convolution at .1.5.
        while f"{here}.{2 * count}.1.5.kernel" in state:
            count += 1
        repeats.append(count)
        below = f"{here}.{2 * count}.1.3"
        if f"{below}.0.1.2.kernel" not in state:
            break
        here = below
    columns = shape("backbone.net.0.kernel", 3)[1]
    kinds = {3: ("rgb",), 5: ("rgb", "xy"), 3 + num_classes: ("rgb", "p"), 5 + num_classes: ("rgb", "xy", "p")}
    if columns not in kinds:
        raise CheckpointError(
            f"{source}: backbone.net.0.kernel takes {columns} columns: expected one of {sorted(kinds)} "
            "(rgb; rgb,xy; rgb,p; rgb,xy,p)"
        )
    return {
        "num_classes": num_classes,
        "planes": tuple(planes),
        "repeats": tuple(repeats),
        "features": kinds[columns],
        "ensembler": "gated" if "ensembler.attn.0.weight" in state else "entropy",
        "selector": "learnable" if "selector.conv.0.weight" in state else "entropy",
    }


def _config(values: Mapping[str, Any], source: str) -> SparseRefineConfig:
    known = {f.name for f in dataclasses.fields(SparseRefineConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(
            f"{source}: unknown settings {', '.join(unknown[:4])}; expected {', '.join(sorted(known))}"
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return SparseRefineConfig(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from None


def _check_settings(config: Mapping[str, Any], source: str | Path) -> None:
    for key, value in config.items():
        items = value if isinstance(value, list) else [value]
        if len(items) > 64 or any(isinstance(v, (int, float)) and not 0 <= v <= _MAX_SETTING for v in items):
            raise CheckpointError(
                f"{source}: config {key}: expected values of 0..{_MAX_SETTING}, found {str(value)[:60]}"
            )


def _check_volume(empty: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    wanted = sum(t.numel() for t in empty.state_dict().values())
    found = sum(t.numel() for t in state.values())
    if wanted > 2 * found + 1000:
        raise CheckpointError(f"{source}: config asks for {wanted} numbers, the file holds {found}")


class seeded:  # noqa: N801  a context manager that reads like a function
    """Random weights by seed, without touching the caller's generator."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.fork = torch.random.fork_rng(devices=[])

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)
