"""Comparing the tensors of one network as two engines compute them, op by op."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, helper

from crispseg.plugins.ops import BY_NAME, DOMAIN, ENTROPY_FLOOR
from crispseg.plugins.overloads import has_overloads, knows_overloads, without_overloads

# Entropies of two correct float32 kernels differ by less.
ROUNDING = 1e-5


def open_onnxruntime(source: str | bytes, threads: int = 1) -> Any:
    """A CPU session of ONNX Runtime, silent, on a file or a serialised model."""
    import onnxruntime

    if not knows_overloads(onnxruntime.__version__):
        model = onnx.load(source) if isinstance(source, str) else ModelProto.FromString(source)
        source = without_overloads(model).SerializeToString() if has_overloads(model) else source
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Made:
    """A tensor of a refiner graph: its name, and the node and op that make it."""

    tensor: str
    node: str
    op: str
    dtype: str


@dataclass
class Hop:
    """What a comparison of two engines found, the worst over all frames."""

    network: str
    hop: str
    tolerance: float
    agreement_floor: float = 0.999
    frames: int = 0
    error: float = 0.0
    agreement: float = 1.0
    sites_different: int = 0
    sites_wrong: int = 0
    first_difference: str | None = None
    skipped: str | None = None
    errors: dict[str, float] = field(default_factory=dict)

    def tensors(self, order: Iterable[Made], found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
        """Take in one frame's tensors by name, of any shape, in the order in which they are made.

        The first above tolerance is named. uint8 tensors are class maps and confidences, which ``classes`` compares: a
        tie may fall either way.
        """
        for made in order:
            if made.tensor not in found or made.tensor not in wanted or made.dtype == "uint8":
                continue
            _, relative = difference(found[made.tensor], wanted[made.tensor])
            self.errors[made.tensor] = max(self.errors.get(made.tensor, 0.0), relative)
            self.error = max(self.error, relative)
            if self.first_difference is None and not relative <= self.tolerance:
                self.first_difference = f"{made.tensor} ({made.op} {made.node}): {relative:.2g}"

    def classes(self, found: np.ndarray, wanted: np.ndarray) -> None:
        """Take in one frame's class maps, integers of one shape; another shape agrees nowhere."""
        agreement = float((found == wanted).mean()) if found.shape == wanted.shape else 0.0
        self.agreement = min(self.agreement, agreement)

    def coords(self, found: np.ndarray, wanted: np.ndarray, undecided: Collection[tuple[int, ...]] = ()) -> None:
        """Take in one frame's active pixels, int [N, 2] (y, x): how many are in one set alone.

        ``undecided``: pixels whose entropy equals the cut to within rounding; they may be in one set alone.
        """
        a, b = ({tuple(site) for site in sites.tolist()} for sites in (found, wanted))
        only = a ^ b
        self.sites_different = max(self.sites_different, len(only))
        self.sites_wrong = max(self.sites_wrong, len(only - set(undecided)))

    @property
    def passed(self) -> bool | None:
        """Whether everything is within tolerance; None for a hop that was skipped."""
        if self.skipped is not None:
            return None
        return not self.sites_wrong and self.first_difference is None and self.agreement >= self.agreement_floor

    def limits(self) -> dict[str, Any]:
        """What ``passed`` holds the hop to: the largest error, and the lowest agreement in percent."""
        floor = round(100 * self.agreement_floor, 4)
        return {"network": self.network, "hop": self.hop, "error": self.tolerance, "agreement": floor}

    def row(self) -> dict[str, Any]:
        """One line of the report; for a skipped hop, why."""
        if self.skipped is not None:
            return {"network": self.network, "hop": self.hop, "reason": self.skipped}
        return {
            "network": self.network,
            "hop": self.hop,
            "passed": self.passed,
            "tensors": len(self.errors),
            "error": float(f"{self.error:.3g}"),
            "agreement": round(100 * self.agreement, 4),
            "sites_different": self.sites_different,
            "first_difference": self.first_difference,
        }


def entropy(logits: np.ndarray) -> np.ndarray:
    """Float rows [N,C] -> float64 [N], as SelectPixels defines it."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    return -(p * np.log(np.maximum(p, ENTROPY_FLOOR))).sum(1)


def undecided_sites(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], threshold: float, over_capacity: bool
) -> set[tuple[int, ...]]:
    """Pixels whose entropy lies so close to the cut that rounding decides on which side they are.

    Args:
        rows: (coords [N,2], logits [N,C]) as each engine selected them.
        threshold: of the entropy.
        over_capacity: the cut is then the lowest entropy that was kept.
    """
    found: set[tuple[int, ...]] = set()
    for coords, logits in rows:
        if len(coords):
            values = entropy(logits)
            cut = float(values.min()) if over_capacity else threshold
            found.update(tuple(site) for site in coords[np.abs(values - cut) <= ROUNDING].tolist())
    return found


def difference(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, and the same divided by the largest magnitude of ``wanted``.

    Integers are 0 or at least 1 apart in both; another shape, or NaN on one side alone, is infinite.
    """
    if found.shape != wanted.shape:
        return float("inf"), float("inf")
    if not wanted.size:
        return 0.0, 0.0
    if np.issubdtype(wanted.dtype, np.integer):
        steps = float(np.abs(found.astype(np.int64) - wanted.astype(np.int64)).max())
        return steps, steps
    if not np.array_equal(np.isfinite(found), np.isfinite(wanted)):
        return float("inf"), float("inf")
    gap = np.abs(found - wanted)
    largest = float(np.nanmax(np.where(np.isfinite(gap), gap, 0.0)))
    scale = float(np.nanmax(np.where(np.isfinite(wanted), np.abs(wanted), 0.0)))
    return largest, largest / max(scale, 1e-9)


def tensors_of(model: ModelProto) -> list[Made]:
    """Every tensor that the crispseg ops of a refiner make, in graph order."""
    out = []
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        for role, name in zip(BY_NAME[node.op_type].outputs, node.output):
            if name:
                out.append(Made(name, node.name, node.op_type, role.dtype))
    return out


def expose(model: ModelProto, tensors: Sequence[Made]) -> ModelProto:
    """A copy of the model with these tensors as outputs, too."""
    model = ModelProto.FromString(model.SerializeToString())
    have = {value.name for value in model.graph.output} | {value.name for value in model.graph.input}
    for made in tensors:
        if made.tensor not in have:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(made.dtype))
            model.graph.output.append(helper.make_tensor_value_info(made.tensor, kind, None))
    return model


def without_selection(model: ModelProto) -> ModelProto:
    """A copy of a refiner whose SelectPixels is gone and whose results are inputs instead.

    Fed with the selection of another engine, the rest of the graph is compared row by row even when an entropy that
    sits on the threshold fell on the other side.
    """
    model = ModelProto.FromString(model.SerializeToString())
    (select,) = (node for node in model.graph.node if node.op_type == "SelectPixels" and node.domain == DOMAIN)
    roles = dict(zip(select.output, BY_NAME["SelectPixels"].outputs))
    for name, role in roles.items():
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(role.dtype))
        model.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * role.rank))
    outputs = [value for value in model.graph.output if value.name not in roles]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del model.graph.output[:]
    model.graph.output.extend(copies)
    model.graph.node.remove(select)
    return model
