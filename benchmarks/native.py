"""Every number that the native sparse kernels are held to, as one table and one list.

    python benchmarks/native.py [--passes 7] [--only conv,refiner] [--json benchmarks/out/native.json]

One thread, process CPU time, everything that is compared takes turns in one run (A B A B), medians. Levels are those of
a 1024x2048 frame with 12 % of the pixels active in bands, from 32 channels at level 0 to 1024 at level 5. The result is
a list of {item, target, measured, ok, note}; ok is null for what could not be measured here, and the note says why.

Sections: conv (kernels against peak, matmul, spconv, ONNX Runtime, Winograd, int8), refiner (the whole default one),
threads (two against one, wall time), long (front end; a half-resolution base of HRNet-W48's size with refiner: their
own benchmarks are run, or their results taken when they are newer than the library).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional

import native_peers as peers
import numpy as np
from int8_conv import forms as int8_forms
from native_ops import CHANNELS, HEIGHT, WIDTH, Layer, contour_mask
from turns import medians

from crispseg.engines.spec import EngineSpec
from crispseg.environment import environment, usable_cpus
from crispseg.plugins import loader
from crispseg.plugins import native_ops as ops

OUT = Path(__file__).resolve().parent / "out"
FMA_ROUNDS = 1_000_000
SHARE = {32: 68.0}  # percent of the FMA peak; 80 from 64 channels on
MATMUL = {32: 1.4}  # 1.0 from 64 channels on
SPCONV = {32: 3.5, 64: 2.7, 128: 1.7, 256: 1.15}
PORTABLE = {32: 2.2, 64: 2.0, 128: 1.4, 256: 1.25}


class Table:
    """Collects the rows and prints each when it is known."""

    def __init__(self) -> None:
        self.rows: List[Dict[str, Any]] = []

    def add(self, item: str, target: float, measured: Optional[float], note: str = "", most: bool = False) -> None:
        """A row: ``measured`` is to reach ``target``, or with ``most`` not to exceed it; None = not measured."""
        ok = None if measured is None else bool(measured <= target if most else measured >= target)
        rounded = None if measured is None else float(f"{measured:.4g}")
        self.rows.append({"item": item, "target": target, "measured": rounded, "ok": ok, "note": note})
        shown = "-" if rounded is None else f"{rounded:g}"
        sign = {None: "-", True: "yes", False: "NO"}[ok]
        print(f"{item:62} {'<=' if most else '>='} {target:<6g} {shown:>9}  {sign:3}  {note}", flush=True)


def levels(native: loader.Native) -> List[SimpleNamespace]:
    """Sites, map, visiting order and tiles of every level."""
    coords = np.argwhere(contour_mask(0.12)).astype(np.int32, order="C")
    height, width, out = HEIGHT, WIDTH, []
    for c in CHANNELS:
        table = ops.submanifold_map(native, coords, height, width)
        tiles = {side: ops.winograd_plan(native, coords, height, width, side) for side in (2, 4)}
        out.append(SimpleNamespace(c=c, coords=coords, height=height, width=width, table=table, tiles=tiles))
        coords, height, width = ops.down_map(native, coords, height, width)[0], (height - 1) // 2, (width - 1) // 2
    return out


def exact(layer: Layer, rows: int = 512) -> np.ndarray:
    """float64 [rows, cout]: the first output rows of a layer after ReLU."""
    x = np.concatenate([np.zeros((1, layer.shape[1])), layer.x.astype(np.float64)])
    gathered = x[layer.table[:rows] + 1].reshape(-1, 9 * layer.shape[1])
    return np.maximum(gathered @ layer.weight_values.reshape(-1, layer.shape[2]).astype(np.float64), 0)


def convolutions(table: Table, native: loader.Native, passes: int) -> None:
    """One submanifold layer a level against everything else that computes it."""
    for number, level in enumerate(levels(native)):
        c, where = level.c, f"C={level.c} (level {number})"
        n = len(level.coords)
        direct = Layer(native, f"L{number} planned", level.table, n, c, c, True, 16)
        winograd = {
            side: Layer(native, f"L{number} winograd{side}", level.table, n, c, c, False, 16, tiles)
            for side, tiles in level.tiles.items()
        }
        wanted: Dict[str, peers.Job] = {
            "peak": lambda: native.library.cs_fma_loop(native.handle, FMA_ROUNDS),
            "direct": direct.run,
            "winograd2": winograd[2].run,
            "winograd4": winograd[4].run,
            "matmul": peers.matmul(direct),
        }
        if c in SPCONV:
            wanted["spconv"] = peers.spconv(direct, level.coords, level.height, level.width)
            wanted["portable"] = peers.portable(direct)
        # They share their arrays: kept while one of them runs.
        forms = int8_forms(native, level.table, level.tiles[2], c)
        wanted["int8"] = forms["int8"]
        jobs = {name: job for name, job in wanted.items() if not isinstance(job, str)}
        ms = medians(jobs, passes)
        notes = {name: job for name, job in wanted.items() if isinstance(job, str)}
        rate = direct.flop / ms["direct"] * 1e-6
        peak = native.library.cs_fma_loop(native.handle, FMA_ROUNDS) / ms["peak"] * 1e-6

        def over(name: str, factor: float = 1.0, ms: Dict[str, float] = ms) -> Optional[float]:
            return factor * ms[name] / ms["direct"] if name in ms else None

        told = f"{rate:.0f} of {peak:.0f} GFLOP/s"
        table.add(f"direct {where}: percent of the FMA peak", SHARE.get(c, 80.0), 100 * rate / peak, told)
        part = n / min(n, peers.MM_ROWS)
        table.add(f"direct {where}: over matmul of gathered rows", MATMUL.get(c, 1.0), over("matmul", part),
                  notes.get("matmul", ""))  # fmt: skip
        if c in SPCONV:
            table.add(f"direct {where}: over spconv", SPCONV[c], over("spconv"), notes.get("spconv", ""))
            table.add(f"direct {where}: over ONNX Runtime", PORTABLE[c], over("portable"), notes.get("portable", ""))
        if c >= 64:
            layers = (direct, winograd[2], winograd[4])
            for layer in layers:
                layer.run()
            want = exact(direct)
            largest = float(np.abs(want).max())
            errors = [layer.y[: len(want)] - want for layer in layers]
            most = [float(np.abs(error).max()) / largest for error in errors]
            rms = [float(np.sqrt(np.mean(error**2))) for error in errors]
            table.add(f"F(2x2) {where}: over direct", 1.25, ms["direct"] / ms["winograd2"])
            table.add(f"F(2x2) {where}: largest error over direct's", 1.0, most[1] / most[0],
                      f"direct's: {most[0]:.1e} of the largest value", most=True)  # fmt: skip
            table.add(f"F(4x4) {where}: over F(2x2)", 1.0, ms["winograd2"] / ms["winograd4"])
            table.add(f"F(4x4) {where}: largest error over the largest value", 1e-5, most[2],
                      f"root mean square {rms[2] / rms[0]:.2f} of direct's", most=True)  # fmt: skip
        table.add(f"INT8 {where}: over direct fp32", 2.2, ms["direct"] / ms["int8"], "bytes in, bytes out")


def whole_refiner(table: Table, rounds: int) -> None:
    """The default refiner, direct and with Winograd, against a square matmul: GFLOP count all nine taps."""
    with tempfile.TemporaryDirectory() as folder:
        open_engine, feeds = refiner(Path(folder) / "refiner.onnx")
        square = peers.square_matmul()
        engines = {"F(2x2)": open_engine(1, "2"), "direct": open_engine(1, "0"), "as loaded": open_engine(1, "")}
        jobs: Dict[str, Callable[[], Any]] = {
            name: (lambda e=engine: e.run(feeds, ["labels"])) for name, engine in engines.items()
        }
        if not isinstance(square, str):
            jobs["matmul"] = square
        ms = medians(jobs, rounds)
        gflop = sum(layer.gflop for layer in engines["direct"].layers())
        base = 2 * 2.048**3 / ms["matmul"] * 1e3 if "matmul" in ms else None
        for name, target in (("direct", 0.9), ("F(2x2)", 1.15), ("as loaded", 1.15)):
            rate = gflop / ms[name] * 1e3
            note = square if isinstance(square, str) else f"{rate:.0f} of {base:.0f} GFLOP/s, {ms[name]:.0f} ms"
            table.add(f"whole refiner, {name}: over matmul rate", target, rate / base if base else None, note)
        stages = engines["as loaded"].stage_times
        share = 100 * stages["maps"] / sum(stages.values())
        table.add(
            "maps and plans of all levels: percent of the refiner", 1.0, share, f"{stages['maps']:.1f} ms", most=True
        )
        for engine in engines.values():
            engine.close()


def refiner(path: Path) -> Any:
    """(opener of engines by threads and Winograd mode, inputs) of the default refiner with random weights."""
    from bands import band_scene
    from refiner_native_vs_ort import export

    from crispseg.engines import native as backend

    image, logits, _ = band_scene(HEIGHT, WIDTH)
    default = SimpleNamespace(planes="32,64,128,256,512,1024", repeats=2, extent="active", height=HEIGHT, width=WIDTH)
    export(default, logits.shape[1:], path)

    def opener(threads: int, winograd: str) -> Any:
        os.environ["CRISPSEG_WINOGRAD"] = winograd
        try:
            return backend.load(path, EngineSpec(threads=threads))
        finally:
            del os.environ["CRISPSEG_WINOGRAD"]

    return opener, {"image": image, "logits": logits}


def two_threads(table: Table, rounds: int) -> None:
    """Wall time of the default refiner on one thread over two. Needs a quiet machine; the note says how quiet."""
    item = "two threads over one, whole refiner (wall time)"
    if usable_cpus() < 2:
        table.add(item, 1.7, None, "one usable CPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        open_engine, feeds = refiner(Path(folder) / "refiner.onnx")
        engines = {n: open_engine(n, "") for n in (1, 2)}
        wall: Dict[int, List[float]] = {n: [] for n in engines}
        busy = []
        for turn in range(rounds + 1):
            for n, engine in engines.items():
                start, cpu = time.perf_counter(), time.process_time()
                engine.run(feeds, ["labels"])
                took = time.perf_counter() - start
                if turn:
                    wall[n].append(took)
                    busy.append((time.process_time() - cpu) / took / n)
        ratio = float(np.median(wall[1]) / np.median(wall[2]))
        note = (
            f"best of each {min(wall[1]) / min(wall[2]):.2f}; got {100 * float(np.median(busy)):.0f} % of the CPU time"
        )
        table.add(item, 1.7, ratio, note)


def other_benchmark(name: str, *arguments: str) -> Any:
    """Result of another benchmark of this folder: the file it wrote when newer than the library, else a new run."""
    target = OUT / f"{name}.json"
    library = next((place for place in loader.candidates() if place.is_file()), None)
    if not target.is_file() or (library and library.stat().st_mtime > target.stat().st_mtime):
        target.parent.mkdir(exist_ok=True)
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--json", str(target), *arguments]
        code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        if code:
            return f"{name}.py failed with exit code {code}"
    return json.loads(target.read_text())


def long_rows(table: Table) -> None:
    """Rows that have benchmarks of their own."""
    front = other_benchmark("front_end")
    row = front if isinstance(front, str) else front["rows"].get(f"{loader.available_isas()[0]} labels", {})
    gain = None if isinstance(row, str) else row.get("times_faster_than_torch")
    table.add("front end: over torch step by step", 25.0, gain, row if isinstance(row, str) else "")
    dense = other_benchmark("hrnet_sized")
    gain = None if isinstance(dense, str) else dense["speedup"]["median"]
    note = (
        dense if isinstance(dense, str) else "rounds " + ", ".join(f"{value:.2f}" for value in dense["speedup"]["all"])
    )
    table.add("half-resolution base and refiner over full resolution", 1.9, gain, note)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3, help="runs of the whole refiner")
    parser.add_argument("--only", default="conv,refiner,threads,long", help="sections, comma between")
    parser.add_argument("--isa", default="")
    parser.add_argument("--json", type=Path, default=OUT / "native.json")
    options = parser.parse_args()
    table, sections = Table(), options.only.split(",")
    print(f"{'item':62} {'target':9} {'measured':>9}  ok   note")
    if "conv" in sections:
        with loader.Native(1, options.isa) as native:
            convolutions(table, native, options.passes)
    if "refiner" in sections:
        whole_refiner(table, options.rounds)
    if "threads" in sections:
        two_threads(table, options.rounds)
    if "long" in sections:
        long_rows(table)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(table.rows, indent=1) + "\n")
    beside = options.json.with_name(options.json.stem + "_environment.json")
    beside.write_text(json.dumps(environment(1), indent=1) + "\n")
    failed = [row["item"] for row in table.rows if row["ok"] is False]
    print(f"{sum(row['ok'] is True for row in table.rows)} reached, {len(failed)} missed, "
          f"{sum(row['ok'] is None for row in table.rows)} not measured")  # fmt: skip


if __name__ == "__main__":
    main()
