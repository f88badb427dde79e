"""An int8 form of the small refiner of the tests, calibrated on the float64 interpreter."""

from __future__ import annotations

from native_net import frame, interpret, unet

from crispseg.calibration.refiner import collect_ranges, quantise_refiner


class Exact:
    """The interpreter where calibration expects an engine."""

    def __init__(self, model):
        self.model = model

    def run(self, feeds, names):
        found = interpret(self.model, feeds)
        return {name: found[name] for name in names}

    def close(self):
        pass


def int8_unet(exclude=(), edges=False, extra=(), **options):
    """``extra``: matrices to give out beside the standard outputs."""
    net = unet(**options)
    model = net.model()
    for node in model.graph.node:
        if node.op_type == "SparseConv2d":
            node.name = next(name for name in node.output if name).replace(".z0", "")
    feeds = [frame(seed) for seed in (11, 12)]
    ranges = collect_ranges(model, lambda: [(feed["image"], feed["logits"]) for feed in feeds], Exact)
    made = quantise_refiner(model, ranges, "minmax", exclude=exclude, edges=edges).model
    net.extra = list(extra)
    outputs = [value for value in net.model().graph.output if value.name in net.extra]
    made.graph.output.extend(outputs)
    return made
