"""Loading the native engine with and without an artefact of `crispseg build`: time and memory, float32 and int8.

    python benchmarks/native_load.py [--planes 32,64,128,256,512,1024] [--rounds 3] [--json out.json]

Each load is a process of its own, the ways in turns, medians. Memory is that of the process alone (RssAnon: without
mapped files), in MiB beyond what Python and its packages hold: the most while loading, watched every 2 ms, and after
a frame of 12 % active pixels. Weights are random. A plan by the rule, not measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

from bands import band_scene

FILES = {"fp32": "refiner.onnx", "int8": "refiner.int8.onnx"}


def parse() -> argparse.Namespace:
    """The command line."""
    from refiner_native_vs_ort import refiner_parser

    parser = refiner_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def bundle_of(folder: Path, logits: List[int], size: List[int]) -> Any:
    """As much of a bundle as the artefact needs."""
    from crispseg.bundle_calibration import Calibration, NetCalibration, preprocessing_hash

    statistics_ = {"mean": [0.0], "std": [1.0]}
    base = SimpleNamespace(height=logits[2], width=logits[3], resize="bilinear", channel_order="rgb", **statistics_)
    files = {name: SimpleNamespace(sha256=digest((folder / name).read_bytes())) for name in FILES.values()}
    bundle = SimpleNamespace(path=folder, refiner=SimpleNamespace(file=FILES["fp32"]), base=base, baseline=None,
                             files=files, height=size[0], width=size[1], file=lambda name: folder / name)  # fmt: skip
    record = NetCalibration(FILES["int8"], {FILES["fp32"]: files[FILES["fp32"]].sha256}, "mse", "0" * 64, 1,
                            preprocessing_hash(bundle, "refiner"), 0, False, (), 1.0)  # type: ignore[arg-type]  # fmt: skip
    bundle.calibration = Calibration({"refiner": record})
    return bundle


def digest(data: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()


def anonymous() -> float:
    """MiB of memory that no file stands behind."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this kernel tells no RssAnon")


def child(path: str, artefact: str, height: int, width: int, stride: int, density: float) -> None:
    """Load one engine, run one frame, print what it took."""
    import onnx  # noqa: F401  (what is imported first is no matter of the engine)

    from crispseg.engines import cache, native
    from crispseg.engines.spec import EngineSpec

    image, logits, _ = band_scene(height, width, stride=stride, density=density)
    before, peak, done = anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    found = cache.load(Path(artefact)) if artefact else None
    engine = native.load(path, EngineSpec(threads=1), artefact=found)
    seconds = time.perf_counter() - start
    loaded = anonymous()
    done.set()
    watcher.join()
    labels = engine.run({"image": image, "logits": logits}, ["labels"])["labels"]
    row = {"seconds": seconds, "peak": max(peak[0], loaded) - before, "loaded": loaded - before,
           "frame": anonymous() - before, "labels": digest(labels.tobytes())}  # fmt: skip
    print(json.dumps(row))


def measure(path: Path, artefact: str, args: argparse.Namespace) -> Dict[str, Any]:
    """One load in a new process."""
    given = (str(path), artefact, args.height, args.width, args.stride, args.density)
    code = "import native_load; native_load.child(*%r)" % (given,)
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.decode("ascii"))


def main() -> None:
    """Measure and print."""
    from int8_refiner import models

    from crispseg.engines import native_artefact

    args = parse()
    _, logits, _ = band_scene(args.height, args.width, stride=args.stride, density=args.density)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models(args, logits.shape[1:], folder)
        bundle = bundle_of(folder, list(logits.shape), [args.height, args.width])
        ways = {}
        for precision, file in FILES.items():
            made = native_artefact.build(bundle, deterministic=True, precision=precision)
            ways[precision, "packed at load"] = (folder / file, "")
            ways[precision, "compiled"] = (folder / file, str(made.path))
        rounds = [{way: measure(*given, args) for way, given in ways.items()} for _ in range(args.rounds)]
    rows = []
    for (precision, how), way in ((way, way) for way in ways):
        found = [items[way] for items in rounds]
        row = {"precision": precision, "how": how}
        row.update({key: round(statistics.median(item[key] for item in found), 2)
                    for key in ("seconds", "peak", "loaded", "frame")})  # fmt: skip
        row["same_labels"] = len({items[p, h]["labels"] for items in rounds for p, h in ways if p == precision}) == 1
        rows.append(row)
        print("%-5s %-15s load %5.2f s, peak %6.0f MiB, loaded %6.0f, after a frame %6.0f, labels %s" % (
            precision, how, row["seconds"], row["peak"], row["loaded"], row["frame"],
            "the same" if row["same_labels"] else "DIFFERENT"))  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
