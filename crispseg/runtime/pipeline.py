"""The pipeline: frame -> preprocess -> base -> refiner -> label map at the frame's own size, each stage timed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from crispseg.bundle import Bundle, NetInfo, load_bundle
from crispseg.bundle_calibration import network_file, runs_at
from crispseg.engines import ort
from crispseg.engines.spec import GPU_BACKENDS, EngineSpec, usual_precision
from crispseg.errors import BundleError, EnvironmentMismatch, InputError
from crispseg.runtime.bars import BarCells, bar_cells, make_certain
from crispseg.runtime.dense_labels import NativeLabels, NumpyLabels
from crispseg.runtime.geometry import FITS, Placement, placement, resize_image, to_canvas, to_frame
from crispseg.runtime.not_finite import check_logits

NETWORKS = ("base", "baseline")
WANT = ("labels", "confidence", "active", "base")


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What one frame gave; the arrays belong to the caller.

    ``labels``: uint8 [H0, W0] class ids at the frame's own size. ``confidence``: uint8 [H0, W0], 255 = certain, when
    wanted. ``active``: bool [H0, W0], the refined pixels, when wanted. ``base``: uint8 [H0, W0], what the base alone
    would have given, when wanted. ``overlay``: uint8 [H0, W0, 3], class colours over the frame, where the pipeline
    painted them (:meth:`GpuPipeline.paint`). ``count``: refined pixels; ``found``: pixels above the threshold (more
    than ``count`` when the capacity was exceeded); ``density``: count / pixels of the canvas, 0..1. ``times``: stage ->
    ms, "total" last. ``not_finite``: pixels of the low-resolution logits that have no softmax (``not_finite``).
    """

    labels: np.ndarray
    confidence: Optional[np.ndarray] = None
    active: Optional[np.ndarray] = None
    count: int = 0
    found: int = 0
    density: float = 0.0
    times: Dict[str, float] = field(default_factory=dict)
    base: Optional[np.ndarray] = None
    overlay: Optional[np.ndarray] = None
    not_finite: int = 0


def open_pipeline(
    bundle: Union[Bundle, str, Path],
    *,
    backend: str = "native",
    provider: str = "CPUExecutionProvider",
    threads: int = 0,
    refine: bool = True,
    network: str = "base",
    fit: str = "auto",
    precision: str = "",
    device: int = 0,
    refiner_engine: bool = False,
) -> Any:
    """Open the engines of a bundle (a loaded one, or its directory).

    Args:
        bundle: what to run.
        backend: "native" (refiner and label upsampling in the native library, dense networks in ONNX Runtime) or
            "onnxruntime" (everything in ONNX Runtime; without a refiner the labels come from numpy), "cuda" (refiner
            in CUDA kernels, dense networks in ONNX Runtime's CUDA provider) or "tensorrt" (dense networks as engines).
        provider: ONNX Runtime's execution provider; it must be there, nothing else is taken instead.
        threads: 0 = all usable CPUs.
        refine: False = the dense network alone; so it is for a bundle without refiner and for the baseline.
        network: "base", or "baseline" = the same network at full resolution.
        fit: how a frame of another size is brought to the bundle's: "auto", "resize" or "letterbox".
        precision: "fp32", "fp16" or "int8"; "" = the backend's usual one: fp16 on a GPU, else fp32.
        device: number of the GPU.
        refiner_engine: backend tensorrt: the refiner as an engine too, which `crispseg build --refiner-engine` made.

    Returns:
        A Pipeline, or a GpuPipeline for the backends of a GPU, which also takes frames ahead (``depth``, ``submit``,
        ``collect``).

    Raises:
        InputError, BundleError, EnvironmentMismatch, UnsupportedOp.
    """
    if network not in NETWORKS:
        raise InputError("network %r: expected %s" % (network, " or ".join(NETWORKS)))
    if fit not in FITS:
        raise InputError("fit %r: expected %s" % (fit, " or ".join(FITS)))
    precision = precision or usual_precision(backend)
    refiner_spec = EngineSpec(backend, provider, threads, precision, device, refiner_engine=refiner_engine)
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle)
    low = precision == "int8" and runs_at(bundle, network, precision) == "int8"
    dense_spec = EngineSpec("onnxruntime", provider, threads, "int8" if low else "fp32")
    net = bundle.base if network == "base" else bundle.baseline
    if net is None:
        raise InputError("bundle %s: has no full-resolution baseline; export it with --baseline" % bundle.path)
    if refiner_engine and not (refine and network == "base" and bundle.refiner):
        raise InputError("--refiner-engine: expected a bundle with a refiner, and its refiner in use")
    if backend in GPU_BACKENDS:
        from crispseg.runtime.gpu_open import open_gpu_pipeline

        return open_gpu_pipeline(bundle, net, refiner_spec, refine and network == "base", fit)
    opened: List[Any] = []
    try:
        dense = ort.load(bundle.file(network_file(bundle, network, precision)), dense_spec)
        opened.append(dense)
        check_net(bundle, net, dense)
        kind = NativeLabels if backend == "native" else NumpyLabels
        labels = partial(kind, bundle.height, bundle.width, net.upsample, dense_spec.thread_count)
        if not (refine and network == "base" and bundle.refiner):
            return Pipeline(bundle, net, dense, None, labels, fit)
        refiner = _open_refiner(bundle, refiner_spec)
        opened.append(refiner)
        check_refiner(bundle, refiner)
        return Pipeline(bundle, net, dense, refiner, labels, fit)
    except BaseException:
        for engine in opened:
            engine.close()
        raise


def _open_refiner(bundle: Bundle, spec: EngineSpec) -> Any:
    path = bundle.file(network_file(bundle, "refiner", spec.precision))
    spec = replace(spec, precision=runs_at(bundle, "refiner", spec.precision))
    if spec.backend == "onnxruntime":
        return ort.load(path, spec)
    try:
        from crispseg.engines import native, native_artefact
    except ImportError as error:
        raise EnvironmentMismatch(
            "backend native: %s; pip install the missing package, or use --backend onnxruntime" % error
        ) from None
    compiled = native_artefact.find(bundle, spec.precision)
    return native.load(path, spec, artefact=compiled.artefact, why=compiled.why)


def check_refiner(bundle: Bundle, engine: Any) -> None:
    """Raise BundleError unless a refiner has the ports that the manifest says."""
    assert bundle.refiner is not None
    base = bundle.base
    want = {"image": [bundle.height, bundle.width, 3],
            "logits": [1, len(bundle.classes), base.logits_height, base.logits_width]}  # fmt: skip
    _check_ports(bundle, bundle.refiner.file, "input", engine.inputs, want)
    missing = [name for name in ("labels", "confidence", "coords", "count", "found") if name not in engine.outputs]
    if missing:
        raise BundleError(
            "bundle %s: %s: expected outputs %s, found none of that name; export the bundle again"
            % (bundle.path, bundle.refiner.file, ", ".join(missing))
        )


def check_net(bundle: Bundle, net: NetInfo, engine: Any) -> None:
    """The graph and the manifest must tell the same story, else a frame would be segmented at a wrong scale."""
    logits = [1, len(bundle.classes), net.logits_height, net.logits_width]
    _check_ports(bundle, net.file, "input", engine.inputs, {"image": [1, 3, net.height, net.width]})
    _check_ports(bundle, net.file, "output", engine.outputs, {"logits": logits})


def _check_ports(bundle: Bundle, file: str, what: str, ports: Dict[str, Any], want: Dict[str, List[int]]) -> None:
    found = {name: list(shape) for name, (_, shape) in ports.items()}
    if found != want:
        raise BundleError(
            "bundle %s: %s: expected %s %s as bundle.json says, found %s; export the bundle again"
            % (bundle.path, file, what, want, found)
        )


def check_frame(frame: np.ndarray, want: Sequence[str]) -> None:
    """Raise InputError unless a frame is uint8 [H, W, 3] and ``want`` names what there is."""
    ok = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    if not ok or not frame.size:
        found = "%s %s" % (getattr(frame, "dtype", type(frame).__name__), getattr(frame, "shape", ""))
        raise InputError("frame: expected uint8 [H, W, 3] RGB, found %s" % found)
    for item in want:
        if item not in WANT:
            raise InputError("want %r: expected any of %s" % (item, ", ".join(WANT)))


def pad_colour(net: NetInfo) -> Tuple[int, int, int]:
    """Of the bars of a letterboxed frame, RGB: it normalises to about zero."""
    mean = [int(round(min(255.0, max(0.0, value)))) for value in net.mean]
    return (mean[0], mean[1], mean[2]) if net.channel_order == "rgb" else (mean[2], mean[1], mean[0])


def normalise(image: np.ndarray, net: NetInfo, out: np.ndarray) -> None:
    """uint8 [h, w, 3] RGB -> ``out`` float32 [1, 3, h, w]; output channel c uses mean[c] and std[c]."""
    for c in range(3):
        source = image[:, :, c if net.channel_order == "rgb" else 2 - c]
        np.subtract(source, np.float32(net.mean[c]), out=out[0, c], dtype=np.float32)
        np.divide(out[0, c], np.float32(net.std[c]), out=out[0, c])


class Pipeline:
    """Engines and buffers for one stream of frames. Used by one thread at a time; close it when done."""

    def __init__(
        self, bundle: Bundle, net: NetInfo, dense: Any, refiner: Any, make_labels: Callable[[], Any], fit: str
    ) -> None:
        self.bundle = bundle
        self.net = net
        self.refined = refiner is not None
        self._dense = dense
        self._refiner = refiner
        self._refiner_capacity = bundle.refiner.capacity if bundle.refiner else 0
        self._make_labels = make_labels
        # Beside a refiner only when asked for.
        self._labels: Any = make_labels() if refiner is None else None
        self._fit = fit
        self._place: Optional[Placement] = None
        self._bars = BarCells(0, 0, 0, 0)
        workers = min(4, dense.spec.thread_count)
        self._pool = ThreadPoolExecutor(workers, "crispseg-resize") if workers > 1 else None
        self._input = np.empty((1, 3, net.height, net.width), np.float32)
        self._pad = pad_colour(net)

    def layers(self) -> List[Any]:
        """Each convolution of the refiner on the last frame (``engines/native_layers.py``).

        Raises:
            InputError: there is no refiner, or its backend does not tell.
        """
        if not hasattr(self._refiner, "layers"):
            what = "no refiner" if self._refiner is None else self._refiner.spec.backend
            raise InputError("--layers: expected a refiner in --backend native, found %s" % what)
        return list(self._refiner.layers())

    @property
    def capacity(self) -> int:
        """Most refined pixels a frame; 0 without a refiner."""
        return 0 if self._refiner is None else self._refiner_capacity

    def set_capacity(self, capacity: int) -> None:
        """Refine at most so many pixels a frame (the most uncertain ones), from the next frame on.

        Raises:
            InputError: below 1, above the bundle's capacity, or there is no refiner.
        """
        refiner = self.bundle.refiner
        if self._refiner is None or refiner is None or not 1 <= capacity <= refiner.capacity:
            most = 0 if self._refiner is None or refiner is None else refiner.capacity
            raise InputError("capacity %d: expected 1 to %d (the bundle's)" % (capacity, most))
        if hasattr(self._refiner, "capacity"):
            self._refiner.capacity = capacity
        elif capacity != self._refiner_capacity:  # ONNX Runtime has it in the graph
            spec = replace(self._refiner.spec, capacity=capacity)
            self._refiner.close()
            self._refiner = _open_refiner(self.bundle, spec)
        self._refiner_capacity = capacity

    def run(self, frame: np.ndarray, want: Sequence[str] = ("labels",)) -> FrameResult:
        """Segment one frame, uint8 [H0, W0, 3] RGB. ``want``: any of "labels", "confidence", "active", "base".

        Raises:
            InputError: the frame has another dtype or shape, or ``want`` names something else.
        """
        start = time.perf_counter()
        check_frame(frame, want)
        times: Dict[str, float] = {}
        if self._place is None or self._place.frame != frame.shape[:2]:
            self._place = placement(
                (frame.shape[0], frame.shape[1]), (self.bundle.height, self.bundle.width), self._fit
            )
            low = (self.net.logits_height, self.net.logits_width)
            self._bars = bar_cells(self._place, low, self.net.upsample)
        place = self._place
        canvas = np.ascontiguousarray(to_canvas(frame, place, self._pad))
        normalise(resize_image(canvas, self.net.height, self.net.width, self._pool), self.net, self._input)
        last = _lap(times, "preprocess", start)
        logits = self._dense.run({"image": self._input}, ("logits",))["logits"]
        last = _lap(times, "base", last)
        if self._bars:
            make_certain(logits, self._bars)
        not_finite = check_logits(logits)
        if self._refiner is not None:
            values, count, found = self._refine(canvas, logits, want, times)
        else:
            labels, confidence = self._labels.run(logits, "confidence" in want)
            values, count, found = {"labels": labels, "confidence": confidence}, 0, 0
        last = _lap(times, "select" if self._refiner is None else "refine", last)
        active = None
        if "active" in want:
            active = np.zeros(place.canvas, bool)
            if count:
                active[values["coords"][:count, 0], values["coords"][:count, 1]] = True
            active = to_frame(active, place)
        result = FrameResult(
            labels=to_frame(values["labels"], place),
            confidence=to_frame(values["confidence"], place) if "confidence" in want else None,
            active=active, count=count, found=found, density=count / float(place.canvas[0] * place.canvas[1]),
            base=to_frame(self._of_base(values["labels"], logits), place) if "base" in want else None, times=times,
            not_finite=not_finite,
        )  # fmt: skip
        _lap(times, "post", last)
        _lap(times, "total", start)
        return result

    def _of_base(self, labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Labels of the base alone; ``labels``: of the whole pipeline, the same without a refiner."""
        if self._refiner is None:
            return labels
        if self._labels is None:
            self._labels = self._make_labels()
        found: np.ndarray = self._labels.run(logits, False)[0]
        return found

    def _refine(
        self, canvas: np.ndarray, logits: np.ndarray, want: Sequence[str], times: Dict[str, float]
    ) -> Tuple[Dict[str, np.ndarray], int, int]:
        outputs = ["labels", "count", "found"]
        outputs += ["confidence"] if "confidence" in want else []
        outputs += ["coords"] if "active" in want else []
        values = self._refiner.run({"image": canvas, "logits": logits}, outputs)
        if values["labels"].shape != canvas.shape[:2]:
            raise BundleError(
                "bundle %s: refiner: expected labels of %s, found %s; export the bundle again"
                % (self.bundle.path, canvas.shape[:2], values["labels"].shape)
            )
        for name, ms in self._refiner.stage_times.items():
            if name not in ("run", "total"):
                times[name] = ms
        return values, int(values["count"][0]), int(values["found"][0])

    def describe(self) -> Dict[str, Any]:
        """JSON-able facts about the engines for the report."""
        return {
            "network": "baseline" if self.net is self.bundle.baseline else "base",
            "fit": self._fit,
            "dense": self._dense.describe(),
            "refiner": None if self._refiner is None else self._refiner.describe(),
            "labels": None if self._labels is None else self._labels.describe(),
        }

    def close(self) -> None:
        """Free the engines."""
        if self._pool is not None:
            self._pool.shutdown()
        for engine in (self._dense, self._refiner, self._labels):
            if engine is not None:
                engine.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _lap(times: Dict[str, float], stage: str, since: float) -> float:
    now = time.perf_counter()
    times[stage] = (now - since) * 1e3
    return now
