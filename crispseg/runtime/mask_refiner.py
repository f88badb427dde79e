"""One interface over the mask refiners: a photo and a grey mask in, a mask and its probability out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import numpy as np

from crispseg.bundle_masks import MODES, CrmInfo, MaskBundle, SegRefinerInfo
from crispseg.engines import native_mask, ort
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, InputError
from crispseg.runtime.mask_images import foreground
from crispseg.runtime.segrefiner_instance import Instance, refine_objects
from crispseg.runtime.segrefiner_sampling import first_steps, seeded_draw
from crispseg.runtime.segrefiner_semantic import refine_semantic

BACKENDS = ("native", "onnxruntime", "tensorrt")
#: Objects or windows in one call on a CPU: more cost memory (about 0.25 GB each) and save nothing.
CPU_BATCH = 2


@dataclass(frozen=True)
class RefineOptions:
    """How to refine. What a bundle of the other kind cannot use must stay at its default.

    Attributes:
        mode: "instance", "semantic" or "" = what the checkpoint was trained for (SegRefiner).
        steps: time steps in instance mode, 0 = all (SegRefiner).
        seed: of the draws (SegRefiner).
        batch: most objects or windows in one call; 0 = 2 on a CPU, else the bundle's (SegRefiner).
        backend: "native" (SegRefiner), "tensorrt", "onnxruntime", or "" = native for SegRefiner on a CPU, else
            onnxruntime.
        precision: of the TensorRT engines, "fp16" or "fp32"; "" = fp16.
        device: number of the GPU (tensorrt).
        provider: ONNX Runtime's execution provider, required.
        threads: 0 = all usable CPUs.
    """

    mode: str = ""
    steps: int = 0
    seed: int = 0
    batch: int = 0
    backend: str = ""
    provider: str = "CPUExecutionProvider"
    threads: int = 0
    precision: str = ""
    device: int = 0


#: Called with (work done, work in all) of one mask.
Progress = Optional[Callable[[float, float], None]]


@dataclass
class Refined:
    """``mask`` bool [H, W]; ``probability`` float32 [H, W] of the foreground; ``facts``: what was done."""

    mask: np.ndarray
    probability: np.ndarray
    facts: Dict[str, Any] = field(default_factory=dict)


def open_mask_refiner(bundle: MaskBundle, options: RefineOptions) -> Any:
    """A ``SegRefinerRuntime`` or ``CrmRuntime``.

    Raises:
        InputError: an option that the bundle has no use for, or out of range.
        EnvironmentMismatch, BundleError, UnsupportedOp: the networks cannot be opened.
    """
    if isinstance(bundle.refiner, SegRefinerInfo):
        return SegRefinerRuntime(bundle, bundle.refiner, options)
    for name in ("mode", "steps", "batch", "seed"):
        if getattr(options, name):
            raise InputError("--%s: expected a SegRefiner bundle, found CRM, which has none; leave it out" % name)
    if options.backend not in ("", "onnxruntime", "tensorrt"):
        raise InputError(
            "--backend %s: expected onnxruntime or tensorrt for a CRM bundle; name one or leave it out"
            % options.backend
        )
    if options.backend == "tensorrt" and options.provider != "CPUExecutionProvider":
        raise InputError(
            "--backend tensorrt with --provider %s: a provider belongs to onnxruntime; leave one of them out"
            % options.provider
        )
    if options.precision and options.backend != "tensorrt":
        raise InputError("--precision: expected --backend tensorrt with it; the others compute in fp32")
    return CrmRuntime(bundle, options)


class SegRefinerRuntime:
    """SegRefiner on the native kernels or ONNX Runtime. Used by one thread at a time."""

    def __init__(self, bundle: MaskBundle, info: SegRefinerInfo, options: RefineOptions) -> None:
        """Open the network. Raises as ``open_mask_refiner``."""
        self.info, self.options = info, options
        self.mode = options.mode or info.mode
        count = len(info.fine_left)
        if self.mode not in MODES:
            raise InputError("--mode %s: expected %s" % (self.mode, " or ".join(MODES)))
        if not 0 <= options.steps <= count or options.batch < 0:
            raise InputError("--steps %d: expected 1 to %d (0 = all)" % (options.steps, count))
        if options.steps and self.mode == "semantic":
            raise InputError(
                "--steps: expected instance mode, found semantic mode, which needs all steps; leave it out"
            )
        if not 0 <= options.seed < 2**63:
            raise InputError("--seed %d: expected a number from 0 to 2^63 - 1" % options.seed)
        self.steps = first_steps(count, options.steps)
        self._draw = seeded_draw(options.seed)
        on_cpu = options.provider == "CPUExecutionProvider"
        self.backend = options.backend or ("native" if on_cpu else "onnxruntime")
        if self.backend not in BACKENDS or (self.backend != "onnxruntime" and not on_cpu):
            raise InputError(
                "--backend %s with --provider %s: expected %s; a provider belongs to onnxruntime"
                % (self.backend, options.provider, " or ".join(BACKENDS))
            )
        if options.precision and self.backend != "tensorrt":
            raise InputError("--precision: expected --backend tensorrt with it; the others compute in fp32")
        self.batch = options.batch or (CPU_BATCH if on_cpu and self.backend != "tensorrt" else info.batch)
        spec = EngineSpec(self.backend, provider=options.provider, threads=options.threads)
        path = bundle.file(info.file)
        self._engine: Any
        if self.backend == "tensorrt":
            self._engine = _tensorrt(bundle, options)
        else:
            self._engine = native_mask.load(path, spec) if self.backend == "native" else ort.load(path, spec)
        shape = self._engine.inputs.get("image", (None, ()))[1]
        if list(shape[1:]) != [4, info.size, info.size] or {"t", "logits"} - {
            *self._engine.inputs,
            *self._engine.outputs,
        }:
            self._engine.close()
            raise BundleError(
                "%s: expected inputs image [N,4,%d,%d] and t, output logits, found others; export the bundle again"
                % (path, info.size, info.size)
            )
        self.calls: List[float] = []  # ms
        self.pictures = 0

    def network(self, image: np.ndarray, t: np.ndarray) -> np.ndarray:
        """One call: float32 [N, 4, S, S] and int64 [N] -> logits float32 [N, 1, S, S]."""
        start = time.perf_counter()
        logits = self._engine.run({"image": image, "t": t}, ["logits"])["logits"]
        self.calls.append((time.perf_counter() - start) * 1e3)
        self.pictures += len(image)
        return logits

    def objects(self, photo: np.ndarray, masks: Sequence[np.ndarray]) -> Iterator[Instance]:
        """Instance mode on several objects (bool [H, W] each) of one photo; see ``refine_objects``."""
        return refine_objects(
            self.network, photo, masks, self.info, steps=self.steps, draw=self._draw, batch=self.batch
        )

    def refine(self, photo: np.ndarray, mask: np.ndarray, progress: Progress = None) -> Refined:
        """Refine one mask: uint8 [H, W, 3] and grey uint8 [H, W]."""
        start = foreground(mask)
        if self.mode == "instance":
            found = next(iter(self.objects(photo, [start])))
            probability = found.mask.astype(np.float32)
            if found.box is not None:
                x0, y0, x1, y1 = found.box
                probability[y0:y1, x0:x1] = found.probability
            return Refined(found.mask, probability, {"refined": found.box is not None})
        made = refine_semantic(
            self.network, photo, start, self.info, draw=self._draw, batch=self.batch, progress=progress
        )
        probability = np.zeros(start.shape, np.float32) if made.probability is None else made.probability
        facts = {"refined": made.probability is not None, "windows": made.windows_run, "undecided": made.candidates}
        return Refined(made.mask, probability, facts)

    def describe(self) -> Dict[str, Any]:
        """Settings for the report."""
        return {
            "mode": self.mode,
            "steps": len(self.steps) if self.mode == "instance" else len(self.info.fine_left),
            "seed": self.options.seed,
            "batch": self.batch,
            "window": self.info.size,
            "backend": self.backend,
            "provider": self.options.provider,
        }

    def close(self) -> None:
        """Free the network."""
        self._engine.close()


def _tensorrt(bundle: MaskBundle, options: RefineOptions) -> Any:
    from crispseg.engines.tensorrt import compat

    trt = compat.require()  # before the device: without TensorRT its absence is the news
    from crispseg.engines.cuda import open_device
    from crispseg.engines.tensorrt.masks_segrefiner import load_segrefiner_engine

    return load_segrefiner_engine(bundle, open_device(options.device), precision=options.precision or "fp16", trt=trt)


def _crm_tensorrt(bundle: MaskBundle, options: RefineOptions) -> Any:
    from crispseg.engines.tensorrt import compat

    trt = compat.require()  # before the device
    from crispseg.engines.cuda import open_device
    from crispseg.engines.tensorrt.masks_crm import load_crm_engines
    from crispseg.runtime.crm import CrmEngine
    from crispseg.runtime.crm_profiles import crm_profiles
    from crispseg.runtime.crm_tiles import TILE_SIDE

    info = bundle.refiner
    assert isinstance(info, CrmInfo)
    context = open_device(options.device)
    precision = options.precision or "fp16"
    networks = load_crm_engines(bundle, crm_profiles(info), context, precision=precision, trt=trt)
    try:
        return CrmEngine(info, networks, tile_side=TILE_SIDE)
    except BaseException:
        for network in networks.values():
            network.close()
        raise


class CrmRuntime:
    """CRM on ONNX Runtime or TensorRT. Used by one thread at a time."""

    def __init__(self, bundle: MaskBundle, options: RefineOptions) -> None:
        """Open the networks. Raises as ``open_mask_refiner``."""
        from crispseg.runtime.crm import open_crm

        self.options = options
        self.backend = options.backend or "onnxruntime"
        self.calls: List[float] = []
        self.pictures = 0
        if self.backend == "tensorrt":
            self._engine = _crm_tensorrt(bundle, options)
        else:
            self._engine = open_crm(bundle, provider=options.provider, threads=options.threads)

    def refine(self, photo: np.ndarray, mask: np.ndarray, progress: Progress = None) -> Refined:
        """Refine one mask: uint8 [H, W, 3] and grey uint8 [H, W], whose grey levels count."""
        start = time.perf_counter()
        probability = self._engine.refine(photo, mask.astype(np.float32) / np.float32(255), progress)
        self.calls.append((time.perf_counter() - start) * 1e3)
        self.pictures += 1
        return Refined(probability > 0.5, probability, {"refined": bool(mask.any())})

    def describe(self) -> Dict[str, Any]:
        """Settings for the report."""
        return {"scales": list(self._engine.info.scales), "backend": self.backend, "provider": self.options.provider}

    def close(self) -> None:
        """Free the networks."""
        self._engine.close()


def refine_labels(
    refiner: Any,
    photo: np.ndarray,
    labels: np.ndarray,
    background: Optional[int] = None,
    ignore: int = 255,
    progress: Progress = None,
) -> Refined:
    """Refine a label map class by class and join the results.

    Every class id in the map but ``ignore`` and ``background`` is refined as a mask of its own. A pixel goes to the
    class that claims it with the highest probability (equal ones: the lowest id). A pixel that nobody claims goes to
    ``background``; without one it keeps its class. Pixels of ``ignore`` stay.

    Returns:
        ``mask`` holds the labels uint8 [H, W]; ``probability`` that of the winning class, 0 where nobody claims.
    """
    ids = [int(i) for i in np.unique(labels) if i not in (ignore, background)]
    best = np.zeros(labels.shape, np.float32)
    out = labels.copy()
    if background is not None:
        out[labels != ignore] = background
    facts: Dict[str, Any] = {"classes": len(ids), "refined": 0}
    for done, i in enumerate(ids):

        def part(work: float, total: float, done: int = done) -> None:
            if progress is not None:
                progress(done + work / total, len(ids))

        found = refiner.refine(photo, np.where(labels == i, np.uint8(255), np.uint8(0)), part)
        facts["refined"] += int(found.facts.get("refined", True))
        wins = found.mask & (found.probability > best) & (labels != ignore)
        out[wins] = i
        best[wins] = found.probability[wins]
        if progress is not None:
            progress(done + 1, len(ids))
    return Refined(out, best, facts)
