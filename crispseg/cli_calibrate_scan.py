"""What `crispseg calibrate --scan` does: joins the pipeline's parts, the calibration and the scan."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from crispseg.bundle import Bundle, bundle_facts, bundle_hash, load_bundle
from crispseg.cli_calibrate_bundle import (
    Choices,
    check_layers,
    for_role,
    frames_of,
    image_set,
    networks_of,
    open_model,
    refiner_frames,
)
from crispseg.errors import InputError
from crispseg.files import require_writable

Progress = Callable[..., None]


@dataclasses.dataclass(frozen=True)
class ScanChoices:
    """Options of the scan alone. ``frames``: it measures on so many; ``state``: None = a file named after the scan."""

    frames: int = 16
    blocks: bool = False
    state: Optional[Path] = None
    plot: Optional[Path] = None


def scan_bundle(
    path: Path, images: Optional[Path], choices: Choices, options: ScanChoices, progress: Progress
) -> Dict[str, Any]:
    """Measure every layer of a bundle in int8; returns the report and writes no bundle.

    Raises:
        InputError: images, options or places that cannot be used, or a state file of another scan.
    """
    from crispseg.calibration.scan import Layer, State, key_of, scan
    from crispseg.environment import environment
    from crispseg.report import new_report

    start = time.perf_counter()
    loaded = load_bundle(path)
    roles = networks_of(loaded, choices.networks)
    if "baseline" in roles:
        raise InputError("--scan: expected --networks base, refiner or both, found baseline, which no pipeline refines")
    check_layers(loaded, roles, choices)
    chosen = image_set(loaded, images, choices)
    facts = _facts(loaded, roles, chosen, choices, options)
    state_file = options.state or Path("scan-%s-%s.json" % (loaded.name, key_of(facts)[:12]))
    for place, what in ((state_file, "--scan-state"), (options.plot, "--plot")):
        if place is not None:
            require_writable(place, what)
    state = State(state_file, key_of(facts))
    parts = {role: _PARTS[role](loaded, chosen, choices, state, progress) for role in roles}
    members = _members(parts, options.blocks)
    layers = [Layer(name, sum(parts[role].macs[item] for item in items)) for name, (role, items) in members.items()]

    def expand(names: Collection[str]) -> Dict[str, List[str]]:
        """Layers by network, of layers or blocks."""
        found: Dict[str, List[str]] = {}
        for name in names:
            role, items = members[name]
            found.setdefault(role, []).extend(items)
        return found

    with _Bench(loaded, parts, images, chosen, choices, options.frames) as bench:
        try:
            result = scan(layers, lambda names: bench.measure(expand(names)), state, progress)
        except KeyboardInterrupt:
            from crispseg.cli_output import Interrupted

            raise Interrupted(f"interrupted; the same command goes on from {state_file}") from None
    rows = _rows(result)
    report = new_report(
        "scan",
        bundle=bundle_facts(loaded),
        layers=rows,
        everything_in_int8=result.whole,
        proposal=_proposal(result, expand),
        method=choices.method,
        gate=choices.gate,
        frames=bench.count,
        images={"count": chosen.count, "sha256": chosen.sha256, "synthetic": chosen.synthetic, "seed": choices.seed},
        state=str(state_file),
        resumed_measurements=state.found,
        total_s=round(time.perf_counter() - start, 2),
        environment=environment(choices.threads),
        warnings=["scanned on random data (--synthetic): it says nothing"] if chosen.synthetic else [],
    )
    if options.plot is not None:
        _draw(options.plot, rows, loaded.name)
    return report


def _facts(bundle: Bundle, roles: Sequence[str], images: Any, choices: Choices, options: ScanChoices) -> Dict[str, Any]:
    """What the results depend on."""
    from crispseg.calibration.provenance import versions

    asked = dataclasses.asdict(choices)
    kept = ("method", "exclude", "keep_ops", "head", "gate", "labels", "gate_images")
    return {
        "bundle": bundle_hash(bundle),
        "networks": list(roles),
        "images": images.sha256,
        "choices": {name: str(asked[name]) for name in kept},
        "frames": options.frames,
        "blocks": options.blocks,
        "versions": versions(),
    }


# ---- the two networks ------------------------------------------------------------------------------------------------


class _Fixed:
    """A range that is known already, where a histogram is expected."""

    def __init__(self, value: float) -> None:
        self.value = value

    def threshold(self, *unused: Any) -> float:
        return self.value


@dataclasses.dataclass
class _Part:
    """One network: ``macs``: layer -> share of its multiply-adds; ``open``: layers in int8 -> an engine."""

    macs: Dict[str, float]
    open: Callable[[Sequence[str]], Any]


def _base(bundle: Bundle, images: Any, choices: Choices, state: Any, progress: Progress) -> _Part:
    from crispseg.calibration import base, placement
    from crispseg.engines import ort
    from crispseg.engines.spec import EngineSpec
    from crispseg.runtime.prepare import prepare

    model = base.read_dense(bundle.file(bundle.base.file))
    fixed = for_role(choices.exclude, "base")
    whole = placement.place(model, fixed, choices.keep_ops, choices.head)
    ranges = state.get("ranges:base")
    if ranges is None:
        histograms = base.collect(
            model,
            whole.watched,
            lambda: (prepare(frame, bundle, bundle.base)[1] for frame in frames_of(bundle, images)),
            threads=choices.threads,
            total=images.count,
            progress=lambda done, total: progress(done, total, "ranges of the base"),
        )
        ranges = {name: histograms[name].threshold(choices.method) for name in whole.watched}
        state.put("ranges:base", ranges)

    def subset(names: Sequence[str]) -> Any:
        others = [name for name in whole.nodes if name not in set(names)]
        return placement.place(model, [*fixed, *others], choices.keep_ops, choices.head)

    def open_engine(names: Sequence[str]) -> Any:
        chosen = subset(names)
        made = base.quantise(model, chosen, {name: _Fixed(ranges[name]) for name in chosen.watched}, choices.method)  # type: ignore[dict-item,misc]
        with tempfile.TemporaryDirectory(prefix="crispseg-scan-") as folder:
            path = Path(folder) / "base.int8.onnx"
            path.write_bytes(base.to_bytes(made.model))
            return ort.load(path, EngineSpec("onnxruntime", threads=choices.threads, precision="int8"))

    return _Part({name: subset([name]).macs_share for name in whole.nodes}, open_engine)


def _refiner(bundle: Bundle, images: Any, choices: Choices, state: Any, progress: Progress) -> _Part:
    from crispseg.calibration import refiner
    from crispseg.calibration.refiner_graph import choose, convolutions
    from crispseg.engines import ort
    from crispseg.engines.spec import EngineSpec

    assert bundle.refiner is not None
    model = refiner.load_model(bundle.file(bundle.refiner.file))
    convs = convolutions(model)
    kept = state.get("ranges:refiner")
    if kept is None:
        with ort.load(bundle.file(bundle.base.file), EngineSpec("onnxruntime", threads=choices.threads)) as dense:
            ranges = refiner.collect_ranges(
                model,
                lambda: refiner_frames(bundle, images, dense),
                lambda made: open_model(made, choices.threads),
                lambda done, total: progress(done, total, "ranges of the refiner"),
                images.count,
            )
        thresholds = {name: histogram.threshold(choices.method) for name, histogram in ranges.histograms.items()}
        kept = {"thresholds": thresholds, "macs": ranges.macs, "other_macs": ranges.other_macs}
        state.put("ranges:refiner", kept)
    fixed: Any = {name: _Fixed(value) for name, value in kept["thresholds"].items()}
    whole = refiner.Ranges(fixed, kept["macs"], kept["other_macs"], images.count, 1)
    names = [conv.name for conv in choose(convs, for_role(choices.exclude, "refiner"))]
    work = (sum(kept["macs"].values()) + kept["other_macs"]) or 1

    def open_engine(chosen: Sequence[str]) -> Any:
        others = [conv.name for conv in convs if conv.name not in set(chosen)]
        made = refiner.quantise_refiner(model, whole, choices.method, exclude=others)
        return open_model(made.model, choices.threads, "int8")

    return _Part({name: kept["macs"][name] / work for name in names}, open_engine)


_PARTS: Dict[str, Callable[..., _Part]] = {"base": _base, "refiner": _refiner}


def _members(parts: Mapping[str, _Part], by_block: bool) -> Dict[str, Tuple[str, List[str]]]:
    """Name of a layer or block, with its network in front -> (network, layers)."""
    from crispseg.calibration.scan import blocks

    found: Dict[str, Tuple[str, List[str]]] = {}
    for role, part in parts.items():
        groups = blocks(list(part.macs)) if by_block else {name: [name] for name in part.macs}
        found.update(("%s:%s" % (role, name), (role, items)) for name, items in groups.items())
    return found


# ---- measuring -------------------------------------------------------------------------------------------------------


class _Bench:
    """Frames that are held in memory, and the float pipeline's result on them."""

    def __init__(
        self,
        bundle: Bundle,
        parts: Mapping[str, _Part],
        images: Optional[Path],
        chosen: Any,
        choices: Choices,
        most: int,
    ) -> None:
        from crispseg.engines import native, ort
        from crispseg.engines.spec import EngineSpec
        from crispseg.runtime.dense_labels import NativeLabels

        self._bundle, self._parts, self._gate = bundle, parts, choices.gate
        self._opened: List[Any] = []
        spec = EngineSpec(threads=choices.threads)
        base = self._keep(ort.load(bundle.file(bundle.base.file), dataclasses.replace(spec, backend="onnxruntime")))
        if bundle.refiner is not None:
            self._last = self._keep(native.load(bundle.file(bundle.refiner.file), spec))
        else:
            size = (bundle.height, bundle.width)
            self._last = self._keep(NativeLabels(*size, bundle.base.upsample, spec.thread_count))
        self._frames = list(_frames(bundle, images, chosen, choices, most))
        self.count = len(self._frames)
        self._logits = [base.run({"image": frame.value}, ("logits",))["logits"] for frame in self._frames]
        self._labels = self._run(None, None)
        self._before = self._accuracy(self._labels)

    def _keep(self, engine: Any) -> Any:
        self._opened.append(engine)
        return engine

    def measure(self, int8: Mapping[str, Sequence[str]]) -> Dict[str, Any]:
        """Share of the pixels that change, drops where there are labels, and whether the gate is passed."""
        from crispseg.calibration import gate

        opened = {role: self._parts[role].open(names) for role, names in int8.items() if names}
        try:
            labels = self._run(opened.get("base"), opened.get("refiner"))
        finally:
            for engine in opened.values():
                engine.close()
        pairs = list(zip(labels, self._labels))
        matches = [(int((new == old).sum()), new.size) for new, old in pairs]
        changed = 100 - 100 * sum(same for same, _ in matches) / max(1, sum(size for _, size in matches))
        found: Dict[str, Any] = {"changed": round(changed, 4)}
        if self._before is None:
            return {**found, "passed": gate.agreement(matches, self._gate)["passed"]}
        after = gate.compare(self._before, self._accuracy(labels) or {}, self._gate)
        drops = {name + "_drop": after[name]["drop"] for name in ("miou", "boundary_iou", "worst_class")}
        return {**found, **drops, "worst_class": after["worst_class"]["class"], "passed": after["passed"]}

    def _run(self, base: Any, refiner: Any) -> List[np.ndarray]:
        from crispseg.runtime.geometry import to_frame

        found = []
        for frame, logits in zip(self._frames, self._logits):
            if base is not None:
                logits = base.run({"image": frame.value}, ("logits",))["logits"]
            if self._bundle.refiner is not None:
                values = (refiner or self._last).run({"image": frame.canvas, "logits": logits}, ("labels",))["labels"]
            else:
                values = self._last.run(logits, False)[0]
            found.append(np.ascontiguousarray(to_frame(values, frame.place)))
        return found

    def _accuracy(self, labels: Sequence[np.ndarray]) -> Optional[Dict[str, Any]]:
        """A report of kind "eval", None without labels."""
        from crispseg.runtime.accuracy import Tally

        if self._frames[0].label is None:
            return None
        tally = Tally(len(self._bundle.classes), self._bundle.ignore_label)
        for predicted, frame in zip(labels, self._frames):
            tally.add(predicted, frame.label)
        return {"refined": tally.result([info.name for info in self._bundle.classes]), "frames": self.count}

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *unused: object) -> None:
        for engine in self._opened:
            engine.close()


@dataclasses.dataclass(frozen=True, eq=False)
class _Frame:
    canvas: np.ndarray
    value: np.ndarray
    place: Any
    label: Any


def _frames(bundle: Bundle, images: Optional[Path], chosen: Any, choices: Choices, most: int) -> Any:
    """Frames to measure on, spread over the set."""
    from crispseg.runtime.accuracy import pair_files, read_pair
    from crispseg.runtime.geometry import placement
    from crispseg.runtime.prepare import prepare

    def made(image: np.ndarray, label: Any) -> _Frame:
        canvas, value = prepare(image, bundle, bundle.base)
        return _Frame(canvas, value, placement(image.shape[:2], (bundle.height, bundle.width)), label)  # type: ignore[arg-type]

    if choices.labels is not None:
        pairs = pair_files(choices.gate_images or images, choices.labels)
        for image_file, label_file in pairs[:: -(-len(pairs) // most)]:
            yield made(*read_pair(image_file, label_file, len(bundle.classes), bundle.ignore_label))
        return
    step = -(-chosen.count // most)
    if not chosen.synthetic:
        chosen = dataclasses.replace(chosen, files=chosen.files[::step])
        step = 1
    for index, image in enumerate(frames_of(bundle, chosen)):
        if index % step == 0:
            yield made(image, None)


# ---- the report ------------------------------------------------------------------------------------------------------


def _rows(result: Any) -> List[Dict[str, Any]]:
    out = set(result.excluded or ())
    rows = []
    for rank, effect in enumerate(result.effects, 1):
        drops = {key: value for key, value in effect.result.items() if key in ("miou_drop", "boundary_iou_drop")}
        rows.append({
            "rank": rank, "layer": effect.layer.name, "changed": effect.result["changed"], **drops,
            "macs": round(100 * effect.layer.macs, 3), "exclude": effect.layer.name in out,
        })  # fmt: skip
    return rows


def _proposal(result: Any, expand: Callable[[Collection[str]], Mapping[str, Sequence[str]]]) -> Dict[str, Any]:
    """The exclusions, as `crispseg calibrate` takes them."""
    if result.excluded is None:
        text = "no list of layers meets the gate: raise --gate, or try another --method and more images"
        return {"passed": False, "exclude": [], "options": "", "text": text}
    names = ["%s:%s" % (role, item) for role, items in expand(result.excluded).items() for item in items]
    if not names:
        return {"passed": True, "exclude": [], "options": "", "text": "nothing has to stay float"}
    options = " ".join("--exclude '%s'" % name for name in names)
    text = "%d layers stay float" % len(names)
    return {"passed": True, "exclude": names, "options": options, "text": text, "measured": result.after}


def _draw(path: Path, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    from crispseg.calibration.scan_plot import svg
    from crispseg.report import write_text

    write_text(path, svg(rows, "int8 sensitivity of %s" % name))
