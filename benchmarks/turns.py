"""Timing of what is compared: in turns (A B A B), in process CPU time, so that other load disturbs all sides alike."""

from __future__ import annotations

import statistics
import time
from typing import Any, Callable, Dict, List, Mapping


def in_turns(jobs: Mapping[str, Callable[[], Any]], rounds: int) -> Dict[str, List[float]]:
    """Milliseconds of each job in each round, after one that warms up."""
    times: Dict[str, List[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if number:
                times[name].append(1e3 * (time.process_time() - start))
    return times


def medians(jobs: Mapping[str, Callable[[], Any]], rounds: int) -> Dict[str, float]:
    """Median milliseconds of each job, in turns."""
    return {name: statistics.median(values) for name, values in in_turns(jobs, rounds).items()}
