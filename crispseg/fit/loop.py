"""The training loop that bases and refiners share: AdamW, warm-up and cosine, weight averaging, resume, best file."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from crispseg.errors import CheckpointError, InputError
from crispseg.fit.data import Batch
from crispseg.fit.options import FitOptions

Report = Callable[[dict], None]


def learning_rate(step: int, options: FitOptions) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def save_atomically(state: dict, path: Path) -> None:
    """torch.save beside, then replaces, so that a broken run never leaves half a file.

    Raises:
        InputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError to torch.save
        raise InputError(f"{path}: cannot be written: {error}; choose a place with room") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


class Average:
    """Exponential moving average of parameters and buffers; what is validated and saved."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves towards the module; young averages forget faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                self.values[key].lerp_(value, 1 - decay)
            else:
                self.values[key].copy_(value)


def train(
    module: nn.Module,
    loss: Callable[[Batch], Tensor],
    data: Callable[[int], Iterator[Batch]],
    validate: Callable[[nn.Module], dict] | None,
    options: FitOptions,
    config: dict,
    report: Report,
    twin: nn.Module,
) -> dict:
    """Trains ``module`` in place and leaves the best averaged weights in ``out/best.pt``.

    Args:
        module: what is trained.
        loss: maps one batch to a scalar.
        data: maps the first step to an iterator of batches.
        validate: maps a module to ``{"miou": ...}``; None = the last state is the best.
        options: the run.
        config: rebuilds the module (plain JSON types); stored beside the weights.
        report: called with one dict a logged step.
        twin: a second instance that carries the averaged weights during validation.

    Returns:
        The record of the run: steps, best mIoU, history, seconds.

    Raises:
        CheckpointError: --resume finds a state of another run.
    """
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made: {error}") from None
    decay = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    average = Average(module, options.ema)
    start, best, history = 0, -1.0, []
    last = out / "last.pt"
    if options.resume:
        if not last.is_file():
            raise InputError(f"{last}: expected the state of a run to resume, found nothing; check -o or drop --resume")
        state = torch.load(last, map_location=options.device, weights_only=True)
        if state.get("config") != config:
            raise CheckpointError(f"{last}: expected a run of {config}, found {state.get('config')}; use another -o")
        module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values = state["average"]
        start, best, history = state["step"], state["best"], state["history"]
        if "rng" in state:
            torch.set_rng_state(state["rng"].cpu())
    began = time.monotonic()
    stream = data(start)
    running = 0.0
    for step in range(start, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        module.train()
        value = loss(next(stream))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
        average.update(module, step)
        running = value.item() if not running else 0.95 * running + 0.05 * value.item()
        done = step + 1
        if done % 20 == 0 or done == options.steps:
            report({"step": done, "steps": options.steps, "loss": running, "seconds": time.monotonic() - began})
        if done % options.validate_every == 0 or done == options.steps:
            twin.load_state_dict(average.values)
            twin.eval()
            scores = validate(twin) if validate else {"miou": float(done)}
            history.append({"step": done, "loss": round(running, 4), **scores})
            report({"step": done, "steps": options.steps, "validation": scores})
            if scores["miou"] > best:
                best = scores["miou"]
                record = {"options": options.record(), "step": done, "scores": scores}
                save_atomically(
                    {"config": config, "state_dict": twin.state_dict(), "training": record}, out / "best.pt"
                )
            state = {"config": config, "model": module.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"average": average.values, "step": done, "best": best, "history": history}
            state["rng"] = torch.get_rng_state()
            save_atomically(state, last)
    return {
        "steps": options.steps,
        "best_miou": best if validate else None,
        "history": history,
        "seconds": round(time.monotonic() - began, 1),
        "checkpoint": str(out / "best.pt"),
        "options": options.record(),
    }
