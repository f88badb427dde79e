"""Section "checks": the whole refiner on this GPU against the CPU engine, at full size, and what a graph must keep.

The ops one by one, on the op table, are the tests (section "tests"). Here: front end and maps of a whole frame; labels
of the refiner in fp32, fp16 and int8; the same bytes from a graph as without one and from run to run; a frame without
an active pixel; a frame with more than the capacity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from gpu.bench import Bench
from gpu.layers import OnDevice, scene_levels
from gpu.settings import REFINER, REFINER_INT8, Settings
from gpu.skip import Skip

OUTPUTS = ("labels", "confidence", "coords", "count", "found")


class Refiner:
    """The exported refiner on the device, with an input of its own and a captured graph."""

    def __init__(self, bench: Bench, path: Path, precision: str) -> None:
        from crispseg.engines import cuda_refiner
        from crispseg.engines.spec import EngineSpec

        self.bench = bench
        self.engine = cuda_refiner.load(path, bench.kernels, EngineSpec("cuda", precision=precision))
        settings = bench.settings
        self.size = (settings.height, settings.width)
        self.low = (1, settings.classes, -(-settings.height // settings.stride), -(-settings.width // settings.stride))
        self.image = bench.room(settings.height * settings.width * 3)
        self.logits = bench.room(4 * int(np.prod(self.low)))

    def feed(self, image: np.ndarray, logits: np.ndarray) -> None:
        """New inputs, at the same addresses."""
        for address, array in ((self.image, image), (self.logits, logits)):
            staged = self.bench.context.pinned(array.shape, array.dtype)
            staged[...] = array
            self.bench.stream.upload(address, staged)
            self.bench.stream.synchronize()

    def enqueue(self) -> None:
        """One frame on the stream."""
        self.engine.enqueue(self.bench.stream, self.image, self.logits, OUTPUTS)

    def read(self) -> Dict[str, np.ndarray]:
        """What the last frame gave; coords only as many rows as are real."""
        at, get = self.engine.address, self.bench.get
        found = {name: get(at(name), self.size, np.uint8) for name in ("labels", "confidence")}
        found.update({name: get(at(name), (1,), np.int32) for name in ("count", "found")})
        found["coords"] = get(at("coords"), (int(found["count"][0]), 2), np.int32)
        return found


def run_checks(settings: Settings) -> Dict[str, Any]:
    """All checks: {"passed", "failed": {name: what}, "measured": {...}}."""
    path, scene = prepared(settings)
    bench = Bench(settings)
    failed: Dict[str, str] = {}
    measured: Dict[str, Any] = {"kernels": bench.kernels.library.csg_kernel_report(bench.kernels.handle).decode()}
    passed: List[str] = []

    def check(name: str, good: bool, what: str) -> None:
        passed.append(name) if good else failed.update({name: what})

    maps_against_cpu(bench, check)
    cpu = reference(path, settings, scene)
    files = forms(settings)
    for precision, least in (("fp32", 0.9999), ("fp16", 0.995), ("int8", 0.99)):
        if precision not in files:
            continue
        refiner = Refiner(bench, files[precision], precision)
        refiner.feed(scene["image"], scene["logits"])
        refiner.enqueue()
        first = refiner.read()
        # int8: against the CPU's int8 kernels, whose other rows are fp32. How far int8 is from fp32 is only told.
        same_kind = cpu if precision != "int8" else reference(files[precision], settings, scene)
        same = agreement(first["labels"], same_kind)
        confidence = int(np.abs(first["confidence"].astype(int) - same_kind["confidence"].astype(int)).max())
        measured[precision] = {
            "labels_equal": same["all"], "active_labels_equal": same["active"],
            "labels_equal_to_fp32": agreement(first["labels"], cpu),
            "largest_confidence_difference": confidence, "count": int(first["count"][0]),
        }  # fmt: skip
        check(precision + " labels", same["all"] >= least,
              "equal on %.5f of the pixels, expected %.4f" % (same["all"], least))  # fmt: skip
        if precision == "fp32":
            wrong = set(map(tuple, first["coords"].tolist())) ^ set(map(tuple, cpu["coords"].tolist()))
            measured["sites_that_differ"] = len(wrong)  # pixels whose entropy lies at the threshold
            check("sites", len(wrong) <= 1e-4 * first["labels"].size, "%d sites differ" % len(wrong))
        behaviour(precision, refiner, scene, first, check)
    equals = ", ".join("%s %.5f" % (name, measured[name]["labels_equal"]) for name in files)
    line = "%d checks passed; labels equal to the CPU's: %s" % (len(passed), equals)
    if "int8" in files:
        line += "; int8 to fp32 on active pixels: %.5f" % measured["int8"]["labels_equal_to_fp32"]["active"]
    return {"line": line, "passed": passed, "failed": failed, "measured": measured}


def behaviour(precision: str, refiner: Refiner, scene: Any, first: Dict[str, np.ndarray], check: Any) -> None:
    """Graphs, repetition, no active pixel, over capacity."""
    bench, stream = refiner.bench, refiner.bench.stream
    graph = bench.graph(refiner.enqueue)
    for turn in range(2):
        graph.launch(stream)
        check(
            "%s graph, run %d" % (precision, turn), equal(refiner.read(), first), "differs from the run without a graph"
        )
    certain = np.full_like(scene["logits"], -40.0)
    certain[:, 1] = 40.0
    refiner.feed(scene["image"], certain)
    graph.launch(stream)
    none = refiner.read()
    good = int(none["count"][0]) == 0 and int(none["found"][0]) == 0 and bool((none["labels"] == 1).all())
    check(precision + " N = 0 in the same graph", good, "count %d, found %d" % (none["count"][0], none["found"][0]))
    refiner.feed(scene["image"], scene["logits"])
    graph.launch(stream)
    check(precision + " back again", equal(refiner.read(), first), "differs after the empty frame")
    graph.close()
    full, found = refiner.engine.capacity, int(first["found"][0])
    room = max(1, found // 3)
    refiner.engine.capacity = room
    refiner.enqueue()
    over = refiner.read()
    rows = over["coords"][:, 0].astype(np.int64) * refiner.size[1] + over["coords"][:, 1]
    kept = set(map(tuple, over["coords"].tolist())) <= set(map(tuple, first["coords"].tolist()))
    good = int(over["count"][0]) == room and int(over["found"][0]) == found and bool((np.diff(rows) > 0).all()) and kept
    check(precision + " over capacity", good, "count %d of room %d, found %d of %d, raster order and subset %s"
          % (over["count"][0], room, over["found"][0], found, kept))  # fmt: skip
    refiner.enqueue()
    check(precision + " over capacity again", equal(refiner.read(), over), "differs from run to run")
    refiner.engine.capacity = full


def equal(a: Dict[str, np.ndarray], b: Dict[str, np.ndarray]) -> bool:
    """The same bytes in every output."""
    return all(np.array_equal(a[name], b[name]) for name in OUTPUTS)


def maps_against_cpu(bench: Bench, check: Any) -> None:
    """Kernel maps of every level from the CPU's sites: equal to the last index."""
    levels = scene_levels(bench.settings)
    there = OnDevice(bench, levels)
    for index, level in enumerate(levels):
        rows, grid = len(level.coords), (level.height, level.width)
        coords, count, size = (
            bench.put(level.coords),
            there.counts[index],
            bench.kernels.size("csg_map_workspace", *grid),
        )
        scratch, table = bench.room(size, 0xA5), bench.room(36 * max(1, rows), 0x5A)
        bench.call("csg_submanifold_map", coords, count, rows, *grid, table, scratch, size)
        check(
            "submanifold map, level %d" % index,
            np.array_equal(bench.get(table, (rows, 9), np.int32), level.same),
            "differs",
        )
        if level.down is None or level.up is None:
            continue
        room = max(1, bench.kernels.size("csg_down_capacity", rows, *grid))
        below, number = bench.room(8 * room), bench.room(4)
        down, up = bench.room(36 * room, 0x5A), bench.room(36 * max(1, rows), 0x5A)
        bench.call("csg_down_map", coords, count, rows, *grid, 0, room, below, number, down, up, scratch, size)
        found = int(bench.get(number, (1,), np.int32)[0])
        good = found == len(levels[index + 1].coords)
        good = good and np.array_equal(bench.get(below, (found, 2), np.int32), levels[index + 1].coords)
        good = good and np.array_equal(bench.get(down, (found, 9), np.int32), level.down)
        good = good and np.array_equal(bench.get(up, (rows, 9), np.int32), level.up)
        check(
            "down map, level %d" % index,
            good,
            "differs (%d sites, expected %d)" % (found, len(levels[index + 1].coords)),
        )
    bench.free()


def reference(path: Path, settings: Settings, scene: Any) -> Dict[str, np.ndarray]:
    """The CPU engine's result."""
    from crispseg.engines import native
    from crispseg.engines.spec import EngineSpec

    with native.load(path, EngineSpec("native", threads=0)) as engine:
        feeds = {"image": scene["image"], "logits": scene["logits"]}
        return {name: np.array(value) for name, value in engine.run(feeds, list(OUTPUTS)).items()}


def agreement(labels: np.ndarray, reference: Dict[str, np.ndarray]) -> Dict[str, float]:
    """Share of equal labels: of the whole frame, and of the pixels that the reference refined."""
    same = labels == reference["labels"]
    rows, columns = reference["coords"][: int(reference["count"][0])].T
    return {"all": float(np.mean(same)), "active": float(np.mean(same[rows, columns])) if len(rows) else 1.0}


def forms(settings: Settings) -> Dict[str, Path]:
    """File of the refiner by precision; no int8 where section "prepare" made none."""
    path, int8 = settings.folder / REFINER, settings.folder / REFINER_INT8
    return {"fp32": path, "fp16": path, **({"int8": int8} if int8.is_file() else {})}


def prepared(settings: Settings) -> Tuple[Path, Any]:
    """refiner.onnx and the scene that section "prepare" made."""
    path, scene = settings.folder / REFINER, settings.folder / "scene.npz"
    if not path.is_file() or not scene.is_file():
        raise Skip("no refiner.onnx: section prepare did not make one (it needs torch and onnx)")
    return path, np.load(str(scene))
