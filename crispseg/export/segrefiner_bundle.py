"""From an official SegRefiner checkpoint to a bundle: export, compare with PyTorch, write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from crispseg.bundle import check_target
from crispseg.bundle_masks import MODES, MaskBundle, SegRefinerInfo, write_mask_bundle
from crispseg.engines.tensorrt.operators import RELEASES, unsupported
from crispseg.errors import InputError, ParityError
from crispseg.export.compare import open_onnxruntime
from crispseg.export.dense import to_half_weights
from crispseg.export.provenance import checkpoint_notes, origin
from crispseg.export.segrefiner import export_segrefiner
from crispseg.models.refiners.segrefiner import (
    FINE_LEFT,
    MEAN,
    STD,
    SegRefiner,
    SegRefinerConfig,
    load_segrefiner,
    random_segrefiner,
)

FILE = "unet.onnx"
# Largest difference between PyTorch and the file, as a probability.
GATE, GATE_HALF = 1e-5, 2e-2
PAPER = "Wang et al., SegRefiner: Towards Model-Agnostic Segmentation Refinement with Discrete Diffusion, NeurIPS 2023"


def export_segrefiner_bundle(
    target: str | Path,
    *,
    weights: str | Path | None = None,
    window: int = 256,
    mode: str = "instance",
    half: bool = False,
    random_weights: bool = False,
    channels: int = 128,
    name: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> MaskBundle:
    """Write a SegRefiner bundle.

    Args:
        target: directory of the bundle.
        weights: official LR or HR checkpoint, or None with ``random_weights``.
        window: side of the network's input, px, a multiple of 32; the official value is 256.
        mode: "instance" for the LR checkpoint, "semantic" for the HR one; ``crispseg refine --mode`` can override it.
        half: store weights as float16; the arithmetic stays float32.
        random_weights: for studies of speed and memory only.
        channels: of the finest level of a network with random weights.
        name: of the bundle.
        seed: of random weights.
        progress: told what is being done.

    Returns:
        The bundle; ``provenance["refiner"]["parity"]`` holds the measured differences.

    Raises:
        InputError: neither or both of weights and random weights, an unknown mode, or a place that cannot be written.
        CheckpointError: the file is not a SegRefiner checkpoint.
        ParityError: the file differs from the network.
    """
    if (weights is None) != random_weights:
        raise InputError(
            "export segrefiner: expected --weights FILE or --random-weights, found both or neither; give one"
        )
    if mode not in MODES:
        raise InputError(f"--mode {mode}: expected {' or '.join(MODES)}")
    check_target(target)  # now, not after minutes of export
    tell = progress or (lambda text: None)
    tell("reading")
    if weights is not None:
        module, dropped = load_segrefiner(weights)
        source = checkpoint_notes(weights, dropped)
        if dropped:
            tell(f"not needed and left out: {', '.join(dropped)}")
    else:
        module = random_segrefiner(seed, SegRefinerConfig(channels=channels))
        source = {"random_weights": True, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        tell("exporting")
        model = export_segrefiner(module, window)
        gaps = {release: found for release in RELEASES if (found := unsupported(model, release))}
        onnx.save(to_half_weights(model) if half else model, str(path))
        del model  # half a gigabyte
        tell("comparing")
        parity = {"torch -> onnxruntime": compare(module, path, window)}
        gate = GATE_HALF if half else GATE
        worst = parity["torch -> onnxruntime"]["max_probability_error"]
        if not worst <= gate:
            raise ParityError(
                f"{FILE}: expected probabilities within {gate:g} of PyTorch's, found {worst:.3g}; the export is wrong, "
                "nothing was written"
            )
        tell(f"torch -> onnxruntime: probabilities differ by at most {worst:.2g}")
        info = SegRefinerInfo(
            file=FILE,
            mode=mode,
            size=window,
            fine_left=FINE_LEFT,
            mean=MEAN,
            std=STD,
            random_weights=random_weights,
        )
        refiner: dict[str, Any] = {**source, "parity": parity, "gate": gate}
        if gaps:
            refiner["tensorrt_unsupported"] = gaps
        provenance = {
            **origin(["refiner"] if random_weights else [], "masks"),
            "paper": PAPER,
            "weights_precision": "float16" if half else "float32",
            "refiner": refiner,
        }
        tell("writing")
        title = name or f"segrefiner{' (random weights)' if random_weights else ''}"
        return write_mask_bundle(target, name=title, refiner=info, files={FILE: path}, provenance=provenance)


def compare(module: SegRefiner, path: Path, window: int) -> dict[str, Any]:
    """Differences of logits and probabilities on a batch of two: noise with half a mask, at the first and last step."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 4, window, window), np.float32)
    image[:, 3] = np.arange(window) < window // 2
    t = np.array([module.config.steps - 1, 0], np.int64)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(image), torch.from_numpy(t))
    session = open_onnxruntime(str(path), torch.get_num_threads())
    found = torch.from_numpy(session.run(["logits"], {"image": image, "t": t})[0])
    return {
        "input": f"2 x {window} x {window} noise with half a mask, seed 0, steps {t[0]} and {t[1]}",
        "max_logit_error": float(f"{float((found - wanted).abs().max()):.4g}"),
        "max_probability_error": float(f"{float((found.sigmoid() - wanted.sigmoid()).abs().max()):.4g}"),
    }
