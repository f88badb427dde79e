"""``crispseg run``: decode, infer and encode at the same time, through bounded queues, and report what was measured."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, Optional, Sequence, Tuple, Union

from crispseg import bundle_calibration
from crispseg.bundle import Bundle, bundle_facts, load_bundle
from crispseg.engines.spec import usual_precision
from crispseg.environment import environment, peak_memory_mib
from crispseg.errors import CrispsegError, InputError
from crispseg.files import hash_files
from crispseg.report import new_report, write_json
from crispseg.runtime.budget import calibrate_on, require_adjustable, summary
from crispseg.runtime.frames import Frame, Source, open_source
from crispseg.runtime.interrupt import Interrupt
from crispseg.runtime.left_out import LeftOut
from crispseg.runtime.not_finite import NotFinite
from crispseg.runtime.outputs import Outputs, parse_save, require_opacity
from crispseg.runtime.overlay import palette
from crispseg.runtime.pipeline import FrameResult, Pipeline, open_pipeline
from crispseg.runtime.queues import Channel, Worker
from crispseg.runtime.series import Series

_QUEUE = 3
_MOST_HASHED = 1 << 30  # bytes: about two seconds


def run(
    bundle: Union[Bundle, str, Path],
    source: Union[str, Path],
    out: Union[str, Path],
    save: Union[str, Sequence[str]] = ("labels", "overlay"),
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
    budget_ms: Optional[float] = None,
    alpha: float = 0.5,
    outline: bool = False,
    legend: bool = False,
    limit: Optional[int] = None,
    progress: Optional[Callable[..., None]] = None,
    warn: Optional[Callable[[str], None]] = None,
    pipeline: Optional[Pipeline] = None,
    opened_source: Optional[Source] = None,
) -> Dict[str, Any]:
    """Segment ``source`` and write the results to the folder ``out``; returns the report, which is also in report.json.

    Args:
        bundle: directory of a bundle, or a loaded one.
        source: picture, folder, glob, video file, ``camera:N``, stream address or GStreamer pipeline.
        out: output folder, created when missing; see ``runtime/outputs.py`` for the files.
        save: any of labels, overlay, color, confidence (list or comma-separated).
        backend: as in :func:`open_pipeline`, so provider, threads, refine, network, fit, precision, device.
        provider: ONNX Runtime's execution provider, required.
        threads: 0 = all usable CPUs.
        refine: False = base alone.
        network: "base" or "baseline".
        fit: "auto", "resize" or "letterbox".
        precision: "" = the backend's usual one.
        device: number of the GPU.
        refiner_engine: backend tensorrt: the refiner as an engine too.
        budget_ms: refine only so many pixels a frame that it takes no longer, see ``runtime/budget.py``.
        alpha: weight of the class colours in the overlay, 0..1.
        outline: draw the outline of the refined pixels into the overlay.
        legend: draw a table of the classes into the overlay.
        limit: stop after so many frames.
        progress: called as ``progress(frames_done, frames_in_all_or_None)`` after each frame.
        warn: called with what the user should know before the end, one line: logits that are not finite.
        pipeline: an open pipeline to use instead of opening one; stays open.
        opened_source: an open source to use instead of opening ``source``; it is closed.

    Ctrl-C stops reading, finishes the frames that are under way and the files, and returns the report with
    ``interrupted`` true. A second one drops the frame under way; one more while files are finished breaks off.
    Raises the errors of the parts (InputError, BundleError, ...); then unfinished videos are gone and there is no
    report.
    """
    items = parse_save(save)
    require_opacity(alpha)
    require_adjustable(budget_ms, refiner_engine)
    folder, precision = Path(out), precision or usual_precision(backend)
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    with contextlib.ExitStack() as stack:
        frames = opened_source or open_source(source, limit)
        stack.callback(frames.close)
        pipe = pipeline
        if pipe is None:
            pipe = open_pipeline(
                loaded, backend=backend, provider=provider, threads=threads, refine=refine, network=network, fit=fit,
                precision=precision, device=device, refiner_engine=refiner_engine,
            )  # fmt: skip
            stack.callback(pipe.close)
        if "overlay" in items and hasattr(pipe, "paint"):  # before the budget: it takes time too
            pipe.paint(palette(loaded.classes), alpha)
            if pipeline is not None:
                stack.callback(pipe.paint, None)
        choice = None if budget_ms is None else calibrate_on(pipe, frames, loaded, budget_ms)
        outputs = Outputs(folder, items, frames, loaded, alpha, outline, legend)
        _drop_old_report(folder)
        decoded = Channel(_QUEUE)
        record = Record(budget_ms)

        def tell(frame: Frame) -> None:
            if warn is not None:
                warn(record.finite.at_once(frame.name, precision, network))

        def stop() -> None:
            decoded.cancelled = True
            frames.stop()

        try:
            with Interrupt(stop) as interrupt:
                _stream(frames, pipe, outputs, record, decoded, progress, tell)
                start = time.perf_counter()
                outputs.close()
                record.finish_ms = (time.perf_counter() - start) * 1e3
            record.interrupted |= interrupt.hit
        except BaseException:
            outputs.abort()
            raise
        report = _report(loaded, pipe, frames, outputs, record, backend, threads)
        told = [] if record.interrupted else frames.warnings(record.written)
        told += record.left.warnings() if choice is None else []
        told += record.finite.warnings(precision, network)
        if precision == "int8":
            report["calibration"] = bundle_calibration.facts(loaded, precision)
            told += bundle_calibration.warnings(loaded, precision)
        if told or precision == "int8":
            report["warnings"] = told
        if choice is not None:
            slowest = record.stages["total"].most if "total" in record.stages else None
            report["budget"] = summary(choice, record.left, record.over_budget, slowest)
    write_json(folder / "report.json", report)
    return report


class Record:
    """What is measured during a run, in bounded memory: a camera may send for weeks."""

    def __init__(self, budget_ms: Optional[float] = None) -> None:
        self.budget_ms = budget_ms
        self.over_budget = 0
        self.stages: Dict[str, Series] = {}
        self.densities = Series()
        self.counts = Series()
        self.left = LeftOut()
        self.finite = NotFinite()
        self.written = 0
        self.interrupted = False
        self.seconds = 0.0
        self.finish_ms = 0.0

    def time(self, stage: str, ms: float) -> None:
        """Keep one measured time. Each stage is written by one thread."""
        if stage not in self.stages:
            self.stages[stage] = Series()
        self.stages[stage].append(ms)

    def add(self, result: FrameResult) -> bool:
        """Keep the figures of one frame; True for the first whose logits were not finite."""
        for stage, ms in result.times.items():
            self.time(stage, ms)
        self.densities.append(100.0 * result.density)
        self.counts.append(result.count)
        self.left.add(result.count, result.found)
        self.over_budget += self.budget_ms is not None and result.times.get("total", 0.0) > self.budget_ms
        return self.finite.add(result.not_finite)


def _stream(
    source: Source,
    pipeline: Pipeline,
    outputs: Outputs,
    record: Record,
    decoded: Channel,
    progress: Optional[Callable[..., None]],
    tell: Callable[[Frame], None],
) -> None:
    """Decode -> infer -> encode. Inference stays in the calling thread, which is where Ctrl-C arrives."""
    encoded = Channel(_QUEUE)

    def decode() -> None:
        for frame, ms in _timed(source):
            record.time("decode", ms)
            decoded.put(frame)
        decoded.close()

    def encode() -> None:
        for frame, result in encoded:
            start = time.perf_counter()
            outputs.write(frame, result)
            record.time("encode", (time.perf_counter() - start) * 1e3)
            record.written += 1

    # A live source has its own thread; a queue behind it would only make its frames older.
    live = source.kind == "live"
    reader = None if live else Worker(decode, "decode", decoded.fail)
    writer = Worker(encode, "encode", lambda error: encoded.cancel())
    start = time.perf_counter()
    try:
        try:
            frames: Iterable[Frame] = iter(source) if live else decoded
            for frame, result in segment(pipeline, frames, outputs.want, ahead=not live):
                if record.add(result):
                    tell(frame)
                encoded.put((frame, result))
                if progress is not None:
                    progress(len(record.counts), source.count)
                if writer.error is not None:
                    break
        except KeyboardInterrupt:
            record.interrupted = True
        decoded.cancel()
        encoded.close()
        writer.join()
    except BaseException:
        if writer.error is None:
            raise
    finally:
        decoded.cancel()
        encoded.cancel()
        writer.join()
        if reader is not None:
            reader.join()
        record.seconds = time.perf_counter() - start
    if writer.error is not None:
        raise writer.error


def segment(
    pipeline: Any, frames: Iterable[Frame], want: Sequence[str], ahead: bool
) -> Iterator[Tuple[Frame, FrameResult]]:
    """Frames with their results, in order.

    With ``ahead``, a pipeline that can take frames while it works gets the next one before the last one is done. A live
    source does without: its frames would only get older.
    """
    depth = getattr(pipeline, "depth", 1) if ahead else 1
    under_way: Deque[Frame] = deque()
    try:
        for frame in frames:
            if depth == 1:
                yield frame, pipeline.run(frame.image, want)
                continue
            pipeline.submit(frame.image, want)
            under_way.append(frame)
            if len(under_way) == depth:
                result = pipeline.collect()
                yield under_way.popleft(), result
        while under_way:
            result = pipeline.collect()
            yield under_way.popleft(), result
    finally:
        for _ in under_way:  # broken off: leave the pipeline empty
            with contextlib.suppress(CrispsegError):
                pipeline.collect()


def _timed(source: Source) -> Iterable[Tuple[Frame, float]]:
    frames = iter(source)
    while True:
        start = time.perf_counter()
        frame = next(frames, None)
        if frame is None:
            return
        yield frame, (time.perf_counter() - start) * 1e3


def _report(
    bundle: Bundle, pipeline: Pipeline, source: Source, outputs: Outputs, record: Record, backend: str, threads: int
) -> Dict[str, Any]:
    last = [name for name in ("encode", "total") if name in record.stages]
    names = [name for name in record.stages if name not in last] + last
    names.sort(key=lambda name: 0 if name == "decode" else 1)
    return new_report(
        "run",
        bundle={**bundle_facts(bundle), "height": bundle.height, "width": bundle.width,
                "random_weights": any(net is not None and net.random_weights
                                      for net in (bundle.base, bundle.baseline, bundle.refiner))},
        input={**source.describe(), **_files_hash(source, record)},
        output=outputs.describe(),
        frames=record.written,
        dropped=source.dropped,
        damaged_packets=source.damaged,
        interrupted=record.interrupted,
        seconds=round(record.seconds, 3),
        throughput_fps=round(record.written / record.seconds, 3) if record.seconds else None,
        finish_ms=round(record.finish_ms, 3),
        density=_rounded(record.densities.mean),
        density_range=[_rounded(record.densities.least), _rounded(record.densities.most)] if record.counts else None,
        count=_rounded(record.counts.mean),
        **record.left.facts(),
        **record.finite.facts(),
        stages={name: record.stages[name].summary() for name in names},
        peak_memory_mib=peak_memory_mib(),
        pipeline=pipeline.describe(),
        environment=environment(threads, backend=backend),
    )  # fmt: skip


def _files_hash(source: Source, record: Record) -> Dict[str, Any]:
    """Hash of what was read from disk; nothing of a live source, and None where reading it again would take long."""
    if not source.files or record.interrupted:
        return {}
    read = source.files if source.kind == "video" else source.files[: record.written]
    try:
        large = sum(path.stat().st_size for path in read) > _MOST_HASHED
        return {"files_sha256": None if large else hash_files(read)}
    except OSError:  # gone meanwhile: no reason to lose the report
        return {"files_sha256": None}


def _rounded(value: Optional[float]) -> Optional[float]:
    return None if value is None else round(value, 4)


def _drop_old_report(folder: Path) -> None:
    """A report of an earlier run must not stand beside files of this one."""
    with contextlib.suppress(FileNotFoundError):
        try:
            (folder / "report.json").unlink()
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise InputError(
                "output %s: cannot be written: %s; choose another folder"
                % (folder / "report.json", error.strerror or error)
            ) from None
