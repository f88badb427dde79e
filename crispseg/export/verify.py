"""Compare a bundle's networks hop by hop on frames: their source, ONNX Runtime with portable bodies, native engine.

Every hop takes the same inputs, so that errors do not add up over hops, and names the first op whose result differs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from crispseg.bundle import Bundle, NetInfo, load_bundle
from crispseg.bundle_calibration import network_file, runs_at
from crispseg.engines import ort
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, CrispsegError, EnvironmentMismatch, InputError, hide_passwords
from crispseg.export.compare import (
    Hop,
    Made,
    expose,
    open_onnxruntime,
    tensors_of,
    undecided_sites,
    without_selection,
)
from crispseg.export.verify_recorded import recorded_hop
from crispseg.export.verify_torch import compared, foreign_reason, is_file, rebuilt, source_hop, torch_reason
from crispseg.files import hash_frames

TOLERANCE = 1e-4
# int8: sums differ in their last bit, so a near-tie may round to the next integer.
TOLERANCE_INT8, AGREEMENT_INT8 = 5e-2, 0.98

DEFINITIONS = {
    "hop": "two engines that compute the same network from the same inputs",
    "tensors": "results compared: for the native engine, those of every op",
    "error": "largest absolute difference of a tensor / largest magnitude of that tensor, over tensors and frames",
    "agreement": "pixels (base: logit pixels) with the same class, percent, lowest frame",
    "limits": "largest error and lowest agreement with which a hop passes",
    "compiled": "the artefact of crispseg build --backend native, whose plan may choose other algorithms",
    "sites_different": "active pixels that only one of the two engines selected, highest frame; a hop fails when the "
    "entropy of one of them is not within 1e-5 of the cut (the threshold, or the lowest that the capacity let in)",
    "first_difference": "first op in graph order with a result above the tolerance, and its error",
}

Progress = Callable[..., None]
#: (bundle, images, count) -> frames with ``name``, ``canvas``, ``value`` and ``settle`` (runtime/prepare.py).
Prepare = Callable[[Bundle, Any, int], Iterable[Any]]
_ENDS = frozenset({"SelectPixels", "LogitsAt", "EnsembleLogits", "ScatterLabels"})


def verify_bundle(
    path: str | Path,
    prepare: Prepare,
    *,
    images: str | Path | None = None,
    weights: Any = None,
    refiner_weights: Any = None,
    frames: int = 2,
    threads: int = 0,
    tolerance: float = TOLERANCE,
    precision: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare the engines that can run a bundle.

    Args:
        path: the bundle.
        prepare: gives the frames as the pipeline's engines get them.
        images: picture, folder or video; None draws street scenes.
        weights: checkpoint of the base, the torch module, or an ONNX file (``foreign_onnx.Onnx``): its source. Without
            it the base is compared with what was recorded alone.
        refiner_weights: checkpoint of the refiner, or the torch module.
        frames: how many frames to compare on.
        threads: of every engine, 0 = all usable CPUs.
        tolerance: largest allowed relative error of a tensor.
        precision: "int8" compares the calibrated files instead: the Q/DQ base as it stands with its integer form, and
            the refiner's portable bodies with the int8 kernels. Roundings may differ there: ``TOLERANCE_INT8``.
        progress: called with (done, total, text).

    Returns:
        A report of kind "verify": one entry a hop under ``hops``, hops that could not run under ``skipped`` with the
        reason, the frames, and ``passed``: no hop failed and at least one ran.

    Raises:
        BundleError: the bundle is damaged.
        InputError: frames that cannot be read, nothing to compare, or a checkpoint of a refiner that is not there.
        CheckpointError: a checkpoint of another network.
    """
    from crispseg.bundle import bundle_facts
    from crispseg.environment import environment
    from crispseg.report import new_report

    if frames < 1:
        raise InputError(f"frames: expected at least 1, found {frames}")
    bundle = load_bundle(path)
    say = progress or (lambda *_, **__: None)
    say(0, frames, "open engines")
    if precision not in ("", "fp32", "int8"):
        raise InputError(f"--precision {precision}: expected fp32 or int8")
    if precision == "int8" and (weights is not None or refiner_weights is not None):
        raise InputError("--precision int8: expected no checkpoint, --module or --onnx: those are float")
    if refiner_weights is not None and bundle.refiner is None:
        raise InputError(f"bundle {bundle.path}: expected a refiner for --refiner-weights, found none; leave it out")
    checks: list[Any] = [
        _Int8Base(bundle, threads)
        if runs_at(bundle, "base", precision) == "int8"
        else _Base(bundle, bundle.base, weights, threads, tolerance)
    ]
    if bundle.refiner is not None:
        checks.append(_Refiner(bundle, refiner_weights, threads, tolerance, precision))
    _require_something([hop for check in checks for hop in check.hops])
    listed: list[dict[str, Any]] = []

    def compare_all() -> Iterator[np.ndarray]:
        """The canvases, one at a time: many frames shall not lie in memory for their hash."""
        for done, frame in enumerate(prepare(bundle, images, frames)):
            say(done, frames, frame.name)
            facts: dict[str, Any] = {"frame": frame.name}
            logits = checks[0].compare(frame.value)
            frame.settle(logits)
            for check in checks[1:]:
                facts.update(check.compare(frame.canvas, logits, done))
            listed.append(facts)
            yield frame.canvas

    frames_sha256 = hash_frames(compare_all())
    hops = [hop for check in checks for hop in check.hops]
    report = new_report(
        "verify",
        bundle=bundle_facts(bundle),
        input={
            "source": "rendered street scenes" if images is None else hide_passwords(str(images)),
            "frames_sha256": frames_sha256,
        },
        passed=all(hop.passed is not False for hop in hops) and any(hop.passed for hop in hops),
        hops=[hop.row() for hop in hops if hop.skipped is None],
        limits=[hop.limits() for hop in hops if hop.skipped is None],
        skipped=[hop.row() for hop in hops if hop.skipped is not None],
        frames_compared=listed,
        environment=environment(threads=EngineSpec("onnxruntime", threads=threads).thread_count),
    )
    report["definitions"].update(DEFINITIONS)
    return report


def _require_something(hops: list[Hop]) -> None:
    """Raise InputError when there is no hop that could run: to have compared nothing is no result."""
    if all(hop.skipped is not None for hop in hops):
        reasons = "; ".join(f"{hop.network}, {hop.hop}: {hop.skipped}" for hop in hops)
        raise InputError(
            f"verify: expected two engines to compare, found none: {reasons}; give --weights or --refiner-weights, or "
            "export the bundle again"
        )


class _Base:
    """Hop source -> ONNX Runtime of the base; gives the logits that the refiner's hops start from."""

    def __init__(self, bundle: Bundle, net: NetInfo, weights: Any, threads: int, tolerance: float) -> None:
        self.net = net
        self.engine = ort.load(bundle.file(net.file), EngineSpec("onnxruntime", threads=threads))
        self.source, self.threads = weights, threads
        self.hop = source_hop(bundle, "base", net.file, tolerance, "given file" if is_file(weights) else "torch")
        self.hops = [self.hop, recorded_hop(bundle, self.engine, tolerance)]
        if weights is None:
            self.hop.skipped = foreign_reason(bundle) or torch_reason(net.random_weights)
        elif isinstance(weights, (str, Path)):
            self.source = rebuilt(bundle, net, weights)

    def compare(self, x: np.ndarray) -> np.ndarray:
        logits = self.engine.run({"image": x}, ["logits"])["logits"]
        if self.source is not None:
            wanted, found = compared(self.source, x, logits, self.threads)
            self.hop.frames += 1
            self.hop.tensors([Made("logits", "logits", "base", "float32")], {"logits": found}, {"logits": wanted})
            self.hop.classes(found.argmax(1), wanted.argmax(1))
        return logits


class _Int8Base:
    """Hop from the Q/DQ file as it stands to the integer operators that ONNX Runtime gets."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        path = bundle.file(network_file(bundle, "base", "int8"))
        self.net = bundle.base
        self.plain = ort.load(path, EngineSpec("onnxruntime", threads=threads))
        self.engine = ort.load(path, EngineSpec("onnxruntime", threads=threads, precision="int8"))
        self.hop = Hop("base, int8", "Q/DQ file -> integer form", TOLERANCE_INT8, AGREEMENT_INT8)
        self.hops = [self.hop]

    def compare(self, x: np.ndarray) -> np.ndarray:
        wanted, logits = (engine.run({"image": x}, ["logits"])["logits"] for engine in (self.plain, self.engine))
        self.hop.frames += 1
        self.hop.tensors([Made("logits", "logits", "base", "float32")], {"logits": logits}, {"logits": wanted})
        self.hop.classes(logits.argmax(1), wanted.argmax(1))
        return logits


class _Refiner:
    """Hops torch -> ONNX Runtime and ONNX Runtime -> native of the refiner."""

    def __init__(self, bundle: Bundle, weights: Any, threads: int, tolerance: float, precision: str = "") -> None:
        info = bundle.refiner
        assert info is not None
        self.bundle, self.info, self.threads, self.module = bundle, info, threads, weights
        self.path = bundle.file(network_file(bundle, "refiner", precision))
        low = runs_at(bundle, "refiner", precision) == "int8"
        try:
            self.model = onnx.load(str(self.path))
            self.order = tensors_of(self.model)
        except CrispsegError:
            raise
        except Exception as error:
            raise BundleError(f"{self.path}: expected a refiner in ONNX, found {error}; export it again") from None
        self.torch_hop = source_hop(bundle, "refiner", info.file, tolerance)
        self.native_hop = Hop("refiner", "onnxruntime -> native", tolerance)
        if low:
            self.native_hop = Hop("refiner, int8", "onnxruntime -> native", TOLERANCE_INT8, AGREEMENT_INT8)
        self.compiled = self._open_compiled("int8" if low else "fp32")
        self.compiled_hop = Hop(self.native_hop.network, "native -> compiled", 0.0, self.native_hop.agreement_floor)
        self.hops = [self.torch_hop, self.native_hop, *([self.compiled_hop] if self.compiled else [])]
        if weights is None:
            self.torch_hop.skipped = torch_reason(info.random_weights)
        elif isinstance(weights, (str, Path)):
            self.module = self._load(weights)
        self.native = self._open_native()
        self.portable = self._session(expose(self.model, self.order))
        self.tail = self._session(expose(without_selection(self.model), self.order)) if self.native else None

    def _load(self, weights: str | Path) -> Any:
        from crispseg.export.networks import refiner_network

        info = self.info
        settings = {
            "features": info.features,
            "extent": info.extent,
            "ensembler": info.ensembler,
            "upsample": info.upsample,
            "threshold": info.threshold,
        }
        return refiner_network(len(self.bundle.classes), weights, settings).module

    def _open_native(self) -> Any:
        try:
            from crispseg.engines import native

            # The engine gives what its graph names as an output, so it gets a graph that names everything.
            with tempfile.TemporaryDirectory() as folder:
                probed = Path(folder) / self.path.name
                onnx.save(expose(self.model, self.order), str(probed))
                return native.load(probed, EngineSpec("native", threads=self.threads))
        except (EnvironmentMismatch, ImportError) as error:
            self.native_hop.skipped = str(error)
            return None

    def _open_compiled(self, precision: str) -> Any:
        """The engine of the bundle's artefact for this CPU, None without one. BundleError: it is damaged."""
        try:
            from crispseg.engines import native, native_artefact

            artefact = native_artefact.find(self.bundle, precision).artefact
            spec = EngineSpec("native", threads=self.threads, precision=precision)
            return native.load(self.path, spec, artefact=artefact) if artefact else None
        except (EnvironmentMismatch, ImportError):
            return None  # the hop to the native engine says why

    def _session(self, model: onnx.ModelProto) -> Any:
        threads = EngineSpec("onnxruntime", threads=self.threads).thread_count
        return open_onnxruntime(model.SerializeToString(), threads)

    def _run(self, session: Any, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
        known = {port.name for port in session.get_inputs()}
        return dict(zip(names, session.run(names, {k: v for k, v in feeds.items() if k in known})))

    def compare(self, canvas: np.ndarray, logits: np.ndarray, index: int) -> dict[str, Any]:
        """One frame. Every op is compared on the first frame, the results alone on the others."""
        order = self.order if index == 0 else [m for m in self.order if m.op in _ENDS]
        names = [made.tensor for made in order]
        feeds = {"image": canvas, "logits": logits}
        found = self._run(self.portable, feeds, names)
        if self.module is not None:
            self._torch(feeds, found)
        if self.native is not None:
            self._native(feeds, found, order)
        active = int(found["count"][0])
        return {
            "count": active,
            "found": int(found["found"][0]),
            "density": round(100 * active / (canvas.shape[0] * canvas.shape[1]), 3),
        }

    def _native(self, feeds: dict[str, np.ndarray], portable: dict[str, np.ndarray], order: list[Made]) -> None:
        hop, names = self.native_hop, [made.tensor for made in order]
        native = self.native.run(feeds, names)
        hop.frames += 1
        if self.compiled is not None:
            mapped = self.compiled.run(feeds, ["labels", "coords"])
            self.compiled_hop.frames += 1
            self.compiled_hop.coords(mapped["coords"], native["coords"])
            self.compiled_hop.classes(mapped["labels"], native["labels"])
        over = int(portable["found"][0]) > len(portable["coords"])
        chosen = [(values["coords"], values["yi"]) for values in (native, portable)]
        hop.coords(native["coords"], portable["coords"], undecided_sites(chosen, self.info.threshold, over))
        hop.classes(native["base_labels"], portable["base_labels"])
        select = [made.tensor for made in order if made.op == "SelectPixels"]
        rest = [made for made in order if made.op != "SelectPixels"]
        wanted = self._run(self.tail, {**feeds, **{n: native[n] for n in select}}, [made.tensor for made in rest])
        hop.tensors(rest, native, wanted)
        hop.classes(native["labels"], wanted["labels"])

    def _torch(self, feeds: dict[str, np.ndarray], portable: dict[str, np.ndarray]) -> None:
        import torch

        from crispseg.models.refiners.sparserefine import Refined

        hop, module = self.torch_hop, self.module.eval()
        image, logits = torch.from_numpy(feeds["image"])[None], torch.from_numpy(feeds["logits"])
        coords = portable["coords"].astype(np.int64)
        probes: dict[str, np.ndarray] = {}
        with torch.no_grad():
            mask = torch.zeros(image.shape[:3], dtype=torch.bool)
            mask[0, torch.from_numpy(coords[:, 0]), torch.from_numpy(coords[:, 1])] = True
            if int(portable["found"][0]) == len(coords):  # over capacity torch selects more than the graph holds
                chosen = torch.nonzero(module.select(image, logits)[0])
                batched = torch.cat([torch.zeros_like(chosen[:, :1]), chosen], 1)
                rows = module.rows(image, logits, batched)[1].numpy()
                near = undecided_sites(
                    [(chosen.numpy(), rows), (coords, portable["yi"])], self.info.threshold, over_capacity=False
                )
                hop.coords(coords, chosen.numpy(), near)
            sites = torch.nonzero(mask)
            x, yi = module.rows(image, logits, sites)
            size = (image.shape[1], image.shape[2])
            yo, ye = module.forward_rows(
                x, yi, sites, size, probe=lambda name, rows: probes.update({name: rows.numpy()})
            )
            wanted = {"yi": yi.numpy(), "x": x.numpy(), **self._renamed(probes), "yo": yo.numpy(), "ye": ye.numpy()}
            labels = module.labels(Refined(mask, sites, yi, yo, ye), logits)[0].numpy()
        hop.frames += 1
        hop.tensors([made for made in self.order if made.tensor in wanted], portable, wanted)
        hop.classes(portable["labels"], labels)

    def _renamed(self, probes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Torch names a level's last block "enc0"; the graph numbers the blocks."""
        renamed = {}
        for name, rows in probes.items():
            if name[:3] in ("enc", "dec"):
                # The last level has no decoder: its result is that of its encoder, told under both names.
                name = f"{name}.{self.info.repeats[int(name[3:])] - 1}"
            renamed[name] = rows
        return renamed
