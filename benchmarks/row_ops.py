"""Times the row ops outside the U-Net: colours, logits at the sites, softmax, both ensemblers, labels.

One thread, process CPU time, on every instruction set of this machine; 250,000 sites of a 1024 x 2048 frame.

    python benchmarks/row_ops.py --json row_ops.json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time

import numpy as np

from crispseg.environment import environment
from crispseg.plugins.loader import UPSAMPLE, GateArguments, Native, available_isas

HEIGHT, WIDTH, HIDDEN = 1024, 2048, 64


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--sites", type=int, default=250_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="write the numbers here as well")
    options = parser.parse_args()
    n, classes = options.sites, options.classes
    rng = np.random.default_rng(0)
    yi, yo = (rng.normal(0, 3, (n, classes)).astype(np.float32) for _ in range(2))
    ye, colours = np.empty_like(yi), np.empty((n, 3), np.float32)
    flat = np.sort(rng.choice(HEIGHT * WIDTH, n, replace=False))
    sites = np.ascontiguousarray(np.stack([flat // WIDTH, flat % WIDTH], 1), np.int32)
    logits = rng.normal(0, 3, (classes, HEIGHT // 4, WIDTH // 4)).astype(np.float32)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    labels, sure = (np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(2))
    statistic = np.ones(3, np.float32)
    shapes = {"w1": (HIDDEN, 2 * classes + 2), "b1": (HIDDEN,), "w2": (2, HIDDEN), "b2": (2,)}
    shapes.update({"w3": (HIDDEN, classes), "b3": (HIDDEN,), "w4": (classes, HIDDEN), "b4": (classes,)})
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    gate = GateArguments(C=classes, hidden=HIDDEN, **{name: value.ctypes.data for name, value in weights.items()})

    a, b, e, s = (array.ctypes.data for array in (yi, yo, ye, sites))
    m, frame = statistic.ctypes.data, (HEIGHT, WIDTH)
    low = (logits.ctypes.data, *logits.shape)
    jobs = {
        "colours": ("cs_pixel_colours", image.ctypes.data, *frame, s, n, m, m, 0, colours.ctypes.data, 3),
        "logits at the sites": ("cs_logits_at", *low, *frame, UPSAMPLE["bilinear"], s, n, e, classes),
        "softmax": ("cs_softmax_rows", a, classes, n, classes, e, classes),
        "gated ensembler": ("cs_ensemble_gated", a, classes, b, classes, n, ctypes.byref(gate), e, classes),
        "entropy ensembler": ("cs_ensemble_entropy", a, classes, b, classes, n, classes, e, classes),
        "labels": ("cs_scatter_labels", labels.ctypes.data, None, *frame, s, n, a, classes, classes),
        "labels, confidence": (
            "cs_scatter_labels",
            *(labels.ctypes.data, sure.ctypes.data),
            *(*frame, s, n, a, classes, classes),
        ),
    }
    rows = {}
    for isa in available_isas():
        with Native(1, isa) as native:
            for name, job in jobs.items():
                times = []
                for _ in range(options.repeats + 1):
                    begin = time.process_time()
                    native.call(*job)
                    times.append(1e3 * (time.process_time() - begin))
                times = times[1:]
                rows[f"{isa} {name}"] = {"median_ms": statistics.median(times), "best_ms": min(times)}
                print(f"{isa + ' ' + name:32s} median {statistics.median(times):8.2f} ms  best {min(times):8.2f} ms")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(
                {"sites": n, "classes": classes, "rows": rows, "environment": environment(threads=1)}, file, indent=1
            )


if __name__ == "__main__":
    main()
