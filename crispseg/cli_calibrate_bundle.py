"""What `crispseg calibrate` does: joins the pipeline's preprocessing, the calibration and the gate."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from crispseg.bundle import Bundle, bundle_facts, check_target, load_bundle, write_bundle
from crispseg.bundle_calibration import Calibration, NetCalibration, facts
from crispseg.errors import InputError
from crispseg.files import require_writable

Progress = Callable[..., None]
AGREEMENT_FRAMES = 64
_NO_FRAMES = ("labels", "label", "masks", "annotations", "gt", "gtfine", "gtcoarse")  # folders of data sets


@dataclasses.dataclass(frozen=True)
class Choices:
    """The options of the command."""

    method: str = "mse"
    count: int = 256
    seed: int = 0
    exclude: Tuple[str, ...] = ()
    keep_ops: Tuple[str, ...] = ()
    head: bool = False
    gate: float = 0.5
    labels: Optional[Path] = None
    gate_images: Optional[Path] = None
    gate_frames: int = 256
    networks: Tuple[str, ...] = ()
    synthetic: bool = False
    trt_cache: Optional[Path] = None
    force: bool = False
    threads: int = 0


def calibrate_bundle(
    path: Path, images: Optional[Path], out: Optional[Path], choices: Choices, progress: Progress
) -> Dict[str, Any]:
    """Calibrate, measure, write; returns the report.

    Raises:
        InputError: images, options or places that cannot be used.
        AccuracyGate: the int8 networks cost more than ``choices.gate`` points; nothing was written.
    """
    from crispseg.calibration import gate, provenance
    from crispseg.engines import keep
    from crispseg.environment import environment, peak_memory_mib
    from crispseg.report import new_report
    from crispseg.runtime.accuracy import pair_files

    start = time.perf_counter()
    if out is None:
        raise InputError("-o: expected the directory to write the calibrated bundle to, found none")
    check_target(out)
    if choices.trt_cache is not None:
        require_writable(choices.trt_cache, "--trt-cache")
    loaded = load_bundle(path)
    roles = networks_of(loaded, choices.networks)
    if choices.trt_cache is not None and "base" not in roles:
        raise InputError("--trt-cache: expected base among --networks: it holds the ranges of the base")
    check_layers(loaded, roles, choices)
    chosen = image_set(loaded, images, choices)
    if choices.labels is not None:
        pair_files(choices.gate_images or images, choices.labels)  # before minutes of work
    when = provenance.date()
    made: Dict[str, bytes] = {}
    records: Dict[str, NetCalibration] = dict(loaded.calibration.networks) if loaded.calibration else {}
    rows, caches = [], []
    for role in roles:
        began = time.perf_counter()
        step = _refiner if role == "refiner" else _dense
        records[role], made[records[role].file], cache = step(loaded, role, chosen, choices, progress)
        caches += [cache] if role == "base" and cache is not None else []
        rows.append(_row(role, records[role], time.perf_counter() - began))
    calibrated = time.perf_counter() - start
    peak = peak_memory_mib()
    with tempfile.TemporaryDirectory(prefix="crispseg-calibrate-") as folder:
        candidate = _store(Path(folder) / "bundle", loaded, made, Calibration(records, None, when))
        result = measure_gate(loaded, candidate, images, chosen, choices, progress)
    if not choices.force:
        gate.require(result)
    final, kept, removed = keep.rewrite(out, lambda: _store(out, loaded, made, Calibration(records, result, when)))
    if choices.trt_cache is not None:
        _write(choices.trt_cache, caches[0])
    warnings = [] if not chosen.synthetic else ["calibrated on random data (--synthetic): not for use"]
    warnings += [] if result["passed"] else ["the gate failed; written because of --force"]
    warnings += removed
    return new_report(
        "calibrate",
        bundle=bundle_facts(final),
        source=bundle_facts(loaded),
        networks=rows,
        images={"count": chosen.count, "sha256": chosen.sha256, "synthetic": chosen.synthetic, "seed": choices.seed},
        method=choices.method,
        gate=result,
        calibration_s=round(calibrated, 2),
        total_s=round(time.perf_counter() - start, 2),
        peak_memory_mib=peak,
        calibration=facts(final, "int8"),
        engines_kept=kept,
        environment=environment(choices.threads),
        warnings=warnings,
    )


def networks_of(bundle: Bundle, asked: Tuple[str, ...]) -> List[str]:
    """Roles to calibrate, in a fixed order. Raises InputError."""
    there = [role for role in ("base", "baseline", "refiner") if getattr(bundle, role) is not None]
    for role in asked:
        if role not in there:
            raise InputError("--networks %s: expected any of %s (what the bundle has)" % (role, ", ".join(there)))
    measured = {"base", "refiner"} & {*asked, *(bundle.calibration.networks if bundle.calibration else ())}
    if asked and not measured:
        raise InputError(
            "--networks baseline: expected base or refiner with it: the gate measures these, the baseline is there to "
            "compare with"
        )
    wanted = asked or [role for role in there if role != "baseline"]
    return [role for role in there if role in wanted]


def check_layers(bundle: Bundle, roles: List[str], choices: Choices) -> None:
    """Refuse choices of layers that are for none of the networks, before minutes of work. Raises InputError."""
    for item in choices.exclude:
        if not any(for_role((item,), role) for role in roles):
            raise InputError(
                "--exclude %s: expected a layer of %s, found one of another network; a name alone means the dense "
                "networks, refiner:NAME the refiner" % (item, " or ".join(roles))
            )
    if roles == ["refiner"] and (choices.head or choices.keep_ops):
        raise InputError("--head, --keep-fp32: expected base among --networks: they are about the dense networks")
    if "refiner" in roles:
        from crispseg.calibration import refiner, refiner_graph

        assert bundle.refiner is not None
        model = refiner.load_model(bundle.file(bundle.refiner.file))
        refiner_graph.choose(refiner_graph.convolutions(model), for_role(choices.exclude, "refiner"))


def image_set(bundle: Bundle, images: Optional[Path], choices: Choices) -> Any:
    """The images to calibrate on. Raises InputError when they are no data."""
    from crispseg.calibration.images import choose, synthetic

    if choices.gate_images is not None and choices.labels is None:
        raise InputError("--gate-images: expected --labels of them with it, found none")
    if choices.synthetic:
        if images is not None or choices.labels is not None:
            raise InputError("--synthetic: expected no images and no labels, found some; give one or the other")
        return synthetic(bundle.height, bundle.width, choices.count, choices.seed)
    if images is None:
        raise InputError("IMAGES: expected a folder of at least 32 real frames, found none given")
    return choose(_pictures(images), choices.count, choices.seed)


def _pictures(folder: Path) -> List[Path]:
    from crispseg.runtime.images import is_image, natural_key

    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise InputError("images %s: expected a folder of pictures, found %s" % (folder, what))
    try:
        found = [item for item in folder.rglob("*") if is_image(item) and item.is_file()]
    except OSError as error:
        raise InputError("images %s: cannot be read: %s" % (folder, error.strerror or error)) from None
    names = {part for item in found for part in item.relative_to(folder).parts[:-1]}
    others = sorted(name for name in names if name.lower() in _NO_FRAMES)
    if others:
        raise InputError(
            "images %s: expected frames alone, found pictures below %s too; give the folder of the frames"
            % (folder, ", ".join(others))
        )
    return sorted((i for i in found if not i.name.startswith(".")), key=lambda i: natural_key(i.relative_to(folder)))


def frames_of(bundle: Bundle, images: Any) -> Iterator[np.ndarray]:
    """The frames of an image set, uint8 [H,W,3], in order."""
    from crispseg.calibration.images import random_frames
    from crispseg.runtime.images import read_image

    if images.synthetic:
        yield from random_frames(images, bundle.height, bundle.width)
    for path in images.files:
        yield read_image(path)


def _dense(
    bundle: Bundle, role: str, images: Any, choices: Choices, progress: Progress
) -> Tuple[NetCalibration, bytes, Optional[bytes]]:
    from crispseg.calibration import base, placement, provenance, trt_cache
    from crispseg.runtime.prepare import prepare

    net = getattr(bundle, role)
    model = base.read_dense(bundle.file(net.file))
    chosen = placement.place(model, for_role(choices.exclude, role), choices.keep_ops, choices.head)
    watched = chosen.watched
    if role == "base" and choices.trt_cache is not None:  # implicit quantisation wants a range for every tensor
        watched = tuple(dict.fromkeys([*watched, *base.activations(model)]))
    histograms = base.collect(
        model,
        watched,
        lambda: (prepare(frame, bundle, net)[1] for frame in frames_of(bundle, images)),
        threads=choices.threads,
        total=images.count,
        progress=partial(_tell, progress, role),
    )
    options = {"exclude": list(choices.exclude), "keep_ops": list(choices.keep_ops), "head": choices.head}
    record = provenance.describe(
        bundle, role, images, choices.method, excluded=chosen.excluded, macs_share=chosen.macs_share, options=options
    )
    made = base.quantise(model, chosen, histograms, choices.method, facts=dataclasses.asdict(record))
    ranges = {name: histograms[name].threshold(choices.method) for name in watched}
    return record, base.to_bytes(made.model), trt_cache.dump(ranges)


def _refiner(
    bundle: Bundle, role: str, images: Any, choices: Choices, progress: Progress
) -> Tuple[NetCalibration, bytes, Optional[bytes]]:
    from crispseg.calibration import provenance, refiner
    from crispseg.engines import ort
    from crispseg.engines.spec import EngineSpec

    assert bundle.refiner is not None
    model = refiner.load_model(bundle.file(bundle.refiner.file))
    spec = EngineSpec("onnxruntime", threads=choices.threads)
    with ort.load(bundle.file(bundle.base.file), spec) as dense:
        ranges = refiner.collect_ranges(
            model,
            lambda: refiner_frames(bundle, images, dense),
            lambda made: open_model(made, choices.threads),
            partial(_tell, progress, role),
            images.count,
        )
    made = refiner.quantise_refiner(model, ranges, choices.method, exclude=for_role(choices.exclude, role))
    options = {"exclude": list(choices.exclude)}
    record = provenance.describe(
        bundle, role, images, choices.method, excluded=made.kept, macs_share=made.share, options=options
    )
    return record, refiner.save_model(made.model, dataclasses.asdict(record)), None


def refiner_frames(bundle: Bundle, images: Any, dense: Any) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """What the refiner reads of each image: the frame uint8 [H,W,3] and the logits of the float base, ``dense``."""
    from crispseg.runtime.prepare import prepare

    for frame in frames_of(bundle, images):
        canvas, value = prepare(frame, bundle, bundle.base)
        yield canvas, dense.run({"image": value}, ("logits",))["logits"]


def open_model(model: Any, threads: int, precision: str = "fp32") -> Any:
    """An engine of a refiner in memory, the native one."""
    from crispseg.engines import native
    from crispseg.engines.spec import EngineSpec

    with tempfile.TemporaryDirectory(prefix="crispseg-calibrate-") as folder:
        path = Path(folder) / "refiner.onnx"
        path.write_bytes(model.SerializeToString())
        return native.load(path, EngineSpec(threads=threads, precision=precision))


def _tell(progress: Progress, text: str, done: int, total: int) -> None:
    progress(done, total, text)


def for_role(exclude: Tuple[str, ...], role: str) -> List[str]:
    """Exclusions of one network: "refiner:NAME" is for that one, a name without a role for all dense ones."""
    found = []
    for item in exclude:
        given, _, name = item.partition(":")
        if given in ("base", "baseline", "refiner") and name:
            found += [name] if given == role else []
        elif role != "refiner":
            found.append(item)
    return found


def measure_gate(
    before: Bundle,
    after: Bundle,
    images: Optional[Path],
    chosen: Any,
    choices: Choices,
    progress: Progress,
    precision: str = "int8",
) -> Dict[str, Any]:
    """Accuracy of the pipeline before, in fp32, and after, at ``precision``, on the same frames."""
    from crispseg.calibration import gate
    from crispseg.runtime.accuracy import evaluate
    from crispseg.runtime.pipeline import open_pipeline

    if choices.labels is not None:
        where = choices.gate_images or images
        reports = [
            evaluate(
                bundle,
                where,
                choices.labels,
                threads=choices.threads,
                limit=choices.gate_frames,
                precision=how,
                progress=partial(_tell, progress, "gate"),
            )
            for bundle, how in ((before, "fp32"), (after, precision))
        ]
        return gate.compare(reports[0], reports[1], choices.gate)
    matches = []
    total = min(AGREEMENT_FRAMES, chosen.count, choices.gate_frames)
    with open_pipeline(before, threads=choices.threads) as old, open_pipeline(
        after, threads=choices.threads, precision=precision
    ) as new:
        for done, frame in zip(range(total), frames_of(before, chosen)):
            progress(done, total, "gate")
            same = old.run(frame).labels == new.run(frame).labels
            matches.append((int(same.sum()), same.size))
    return gate.agreement(matches, choices.gate)


def _store(target: Path, bundle: Bundle, made: Dict[str, bytes], calibration: Calibration) -> Bundle:
    kept = {net.file for net in calibration.networks.values()}
    old = {net.file for net in bundle.calibration.networks.values()} if bundle.calibration else set()
    files: Dict[str, Any] = {name: bundle.file(name) for name in bundle.files if name not in old - kept}
    files.update(made)
    return write_bundle(
        target, name=bundle.name, height=bundle.height, width=bundle.width, classes=bundle.classes, base=bundle.base,
        baseline=bundle.baseline, refiner=bundle.refiner, provenance=bundle.provenance, calibration=calibration,
        files=files,
    )  # fmt: skip


def _row(role: str, record: NetCalibration, seconds: float) -> Dict[str, Any]:
    return {
        "network": role,
        "file": record.file,
        "int8_macs_percent": round(100 * record.macs_share, 2),
        "layers_in_float": len(record.excluded),
        "seconds": round(seconds, 2),
    }


def _write(path: Path, data: bytes) -> None:
    from crispseg.report import write_text

    write_text(path, data.decode("utf-8"))
