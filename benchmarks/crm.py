"""CRM as crispseg runs it against the published inference in PyTorch eager, with the backbone's unused fourth stage.

Weights are random and the picture is noise: this measures time and memory, which depend on neither. Both sides run in
this process in turns (A B A B), process CPU time, 1 thread each by default. The peak resident set of each side is
measured in a process of its own.

    python benchmarks/crm.py [--size 1024] [--runs 2] [--threads 1] [--scales 1.0] [--memory] [--json out.json]
    python benchmarks/crm.py --only crispseg --size 6000 --scales 1.0        # one side alone: time and peak memory
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

SIDES = ("crispseg", "eager")


def picture(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [size,size,3], float32 [size,size]): noise and a rectangle."""
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), np.float32)
    mask[size // 4 : 3 * size // 4, size // 3 : 2 * size // 3] = 1
    return image, mask


def eager(size: int, threads: int, scales: tuple[float, ...] | None) -> Callable[[], Any]:
    """The published inference in PyTorch, with stage 4 computed and thrown away."""
    import torch

    from crispseg.models.refiners.crm import CRM, SCALES, refine_reference, stage

    class WithStage4(CRM):
        def __init__(self) -> None:
            super().__init__()
            self.layer4 = stage(1024, 512, 3, dilation=4)

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            first, second, third = self.feats(x)
            self.layer4(third)
            return self.aspp_(*self.aspp_.branches(first, second, third))

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = WithStage4().eval()
    image, mask = (torch.from_numpy(array) for array in picture(size))

    def run() -> Any:
        with torch.inference_mode():
            return refine_reference(model, image, mask, scales=scales or SCALES)[-1].numpy()

    return run


def crispseg(size: int, threads: int, bundle: str, scales: tuple[float, ...] | None) -> Callable[[], Any]:
    """A bundle behind ONNX Runtime; other turns than the bundle's on request."""
    import dataclasses

    from crispseg.bundle_masks import CrmInfo, load_mask_bundle
    from crispseg.runtime.crm import open_crm, refine

    loaded = load_mask_bundle(bundle)
    if scales and isinstance(loaded.refiner, CrmInfo):
        loaded = dataclasses.replace(loaded, refiner=dataclasses.replace(loaded.refiner, scales=scales))
    engine = open_crm(loaded, threads=threads)
    image, mask = picture(size)
    return lambda: refine(engine, image, mask)


def seconds(run: Callable[[], Any]) -> float:
    """Process CPU time of one call, s."""
    start = time.process_time()
    run()
    return time.process_time() - start


def alone(side: str, arguments: argparse.Namespace, bundle: str) -> dict[str, float]:
    """Time of one call and peak memory of a process that does nothing else."""
    command = [sys.executable, __file__, "--only", side, "--bundle", bundle]
    command += ["--size", str(arguments.size), "--threads", str(arguments.threads)]
    if arguments.scales:
        command += ["--scales", ",".join(str(scale) for scale in arguments.scales)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the picture, px")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bundle", help="CRM bundle; default: one with random weights is made")
    parser.add_argument("--memory", action="store_true", help="also the peak memory of each side")
    parser.add_argument("--only", choices=SIDES, help="one call of one side in this process")
    parser.add_argument(
        "--scales", type=lambda text: tuple(float(s) for s in text.split(",")), help="of the turns; default: all four"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle
        if bundle is None and arguments.only != "eager":
            bundle = str(Path(folder) / "crm")
            make = f"from crispseg.export.crm_bundle import export_crm; export_crm({bundle!r}, random_weights=True)"
            subprocess.run([sys.executable, "-c", make], check=True)  # not here: it would count as memory
        sides = {
            "crispseg": lambda: crispseg(arguments.size, arguments.threads, bundle, arguments.scales),
            "eager": lambda: eager(arguments.size, arguments.threads, arguments.scales),
        }
        if arguments.only:
            cpu = seconds(sides[arguments.only]())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps({"cpu_s": round(cpu, 2), "peak_memory_mib": round(peak, 1)}))
            return
        runs = {name: make() for name, make in sides.items()}
        times: dict[str, list[float]] = {name: [] for name in SIDES}
        for _ in range(arguments.runs):
            for name in SIDES:
                times[name].append(seconds(runs[name]))
        ratios = [b / a for a, b in zip(times["crispseg"], times["eager"], strict=True)]
        result: dict[str, Any] = {
            "size": arguments.size,
            "threads": arguments.threads,
            "scales": arguments.scales,
            "cpu_s": {name: round(statistics.median(values), 3) for name, values in times.items()},
            "speedup": {"p50": round(statistics.median(ratios), 3), "low": min(ratios), "high": max(ratios)},
        }
        if arguments.memory:
            peaks = {name: alone(name, arguments, bundle)["peak_memory_mib"] for name in SIDES}
            result["peak_memory_mib"] = {**peaks, "ratio": round(peaks["eager"] / peaks["crispseg"], 3)}
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
