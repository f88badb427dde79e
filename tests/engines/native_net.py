"""Small refiner graphs written by hand, and a float64 interpreter of the op contract to compare with."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from op_table import reference_down, reference_submanifold
from rows_support import entropy, softmax, upsample

from crispseg.plugins.quantise import quantise_weight

FRAME = (24, 40)
CLASSES = 5
LOW = (6, 10)
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]
PLUGIN = {"plugin_version": "1", "plugin_namespace": ""}
TYPES = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}


class Net:
    """Collects nodes and constants; ``extra`` are matrices to give out beside the standard outputs."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.extra = [], {}, []

    def weight(self, name, *shape, scale=None, half=False):
        fan = np.prod(shape[:-1]) if len(shape) > 1 else 1
        value = self.rng.normal(0, scale or fan**-0.5, shape).astype(np.float32)
        if half:
            value = value.astype(np.float16)
            self.constants[name + ".half"] = value
            self.nodes.append(helper.make_node("Cast", [name + ".half"], [name], name + ".cast", to=TensorProto.FLOAT))
        else:
            self.constants[name] = value
        return name

    def op(self, op, inputs, outputs, **attributes):
        domain = "" if op == "Concat" else "crispseg"
        plugin = {} if op == "Concat" else PLUGIN
        self.nodes.append(
            helper.make_node(
                op, inputs, outputs, "n%d_%s" % (len(self.nodes), op), domain=domain, **attributes, **plugin
            )
        )
        return outputs[0]

    def head(self, features="rgb", threshold=0.5, capacity=10000, upsample="bilinear", order="rgb"):
        size = {"height": FRAME[0], "width": FRAME[1]}
        selected = ["labels0", "coords", "count", "found", "confidence0"]
        self.op("SelectPixels", ["logits"], selected, **size, upsample=upsample, threshold=threshold, capacity=capacity)
        self.op("LogitsAt", ["logits", "coords", "count"], ["yi"], **size, upsample=upsample)
        rows = ["image", "coords", "count"] + (["yi"] if "p" in features.replace("rgb", "") else [])
        self.op("PixelFeatures", rows, ["x"], **size, features=features, channel_order=order, mean=MEAN, std=STD)
        self.op("SubmanifoldMap", ["coords", "count"], ["map0"], **size)

    def tail(self, yo, mode="gated", hidden=7):
        extra = []
        if mode == "gated":
            shapes = [(hidden, 2 * CLASSES + 2), (hidden,), (2, hidden), (2,), (hidden, CLASSES), (hidden,),
                      (CLASSES, hidden), (CLASSES,)]  # fmt: skip
            names = ["w1", "b1", "w2", "b2", "w3", "b3", "w4", "b4"]
            extra = [self.weight(name, *shape, scale=0.4) for name, shape in zip(names, shapes)]
        self.op("EnsembleLogits", ["yi", yo, "count", *extra], ["ye"], mode=mode)
        self.op("ScatterLabels", ["labels0", "confidence0", "coords", "count", "ye"], ["labels", "confidence"])

    def int8_weight(self, name, *shape):
        q, scale = quantise_weight(self.rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape))
        self.constants.update({name + ".q": q, name + ".scale": scale, name + ".zero": np.zeros(shape[2], np.int8)})
        parts = [name + ".q", name + ".scale"] + ([name + ".zero"] if len(self.nodes) % 2 else [])
        self.nodes.append(helper.make_node("DequantizeLinear", parts, [name], name + ".dequantise", axis=2))
        return name

    def conv(self, name, x, table, count, taps, cin, cout, bias=True, residual="", relu=0, y=True, z=0, half=False,
             x_scale=0.0):  # fmt: skip
        shape = (taps, cin, cout)
        weight = self.int8_weight(name + ".w", *shape) if x_scale else self.weight(name + ".w", *shape, half=half)
        inputs = [x, table, count, weight]
        inputs += [self.weight(name + ".b", cout, scale=0.3) if bias else "", residual]
        for i in range(z):
            inputs += [self.weight(f"{name}.s{i}", cout, scale=1), self.weight(f"{name}.t{i}", cout, scale=0.5)]
        outputs = [name if y else ""] + [f"{name}.z{i}" for i in range(z)]
        scale = {"x_scale": x_scale} if x_scale else {}
        self.op("SparseConv2d", inputs, outputs, relu=relu, **scale)
        return name

    def model(self, outputs=("labels", "confidence", "coords", "count", "found"), opset=17, contract="1"):
        shapes = {"labels": ("uint8", FRAME), "confidence": ("uint8", FRAME), "coords": ("int32", ["N", 2])}
        ports = [helper.make_tensor_value_info("image", TensorProto.UINT8, [*FRAME, 3])]
        ports.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES, *LOW]))
        results = []
        for name in [*outputs, *self.extra]:
            kind, shape = shapes.get(name, ("int32", [1]) if name in ("count", "found") else ("float32", None))
            results.append(helper.make_tensor_value_info(name, TYPES[kind], shape))
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "refiner", ports, results, constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("crispseg", 1)], ir_version=10
        )
        helper.set_model_props(model, {"crispseg.contract": contract, "crispseg.kind": "sparserefine"})
        return model


def unet(seed=0, features="rgb", mode="gated", **head):
    """Two levels, every kind of node: joined and copied Concats (one inside another), unused outputs, half weights."""
    net = Net(seed)
    net.head(features, **head)
    width = sum({"rgb": 3, "xy": 2}.get(name, CLASSES) for name in features.split(","))
    size = {"height": FRAME[0], "width": FRAME[1]}
    net.conv("stem", "x", "map0", "count", 9, width, 8, z=1)
    net.conv("enc", "stem.z0", "map0", "count", 9, 8, 8, residual="stem", z=2)
    net.op("DownMap", ["coords", "count"], ["coords1", "count1", "down", "up"], **size, extent="active")
    net.op("SubmanifoldMap", ["coords1", "count1"], ["map1"], height=(FRAME[0] - 1) // 2, width=(FRAME[1] - 1) // 2)
    net.conv("low", "enc.z0", "down", "count1", 9, 8, 12, bias=False, z=1)
    net.conv("low2", "low.z0", "map1", "count1", 9, 12, 12, relu=1, residual="low", half=True)
    net.conv("back", "low2", "up", "count", 9, 12, 6, z=1)
    net.op("Concat", ["enc", "back"], ["cat"], axis=1)
    net.op("Concat", ["enc.z1", "back.z0"], ["catz"], axis=1)
    net.op("Concat", ["cat", "stem.z0", "enc.z1"], ["wide"], axis=1)  # cat within wide; enc.z1 copied
    net.op("Concat", ["back", "back"], ["twice"], axis=1)  # both copied: back lies in cat
    net.conv("skip", "cat", "", "count", 1, 14, 8, bias=False)
    net.conv("dec", "catz", "map0", "count", 9, 14, 8, residual="skip", y=False, z=1)
    net.conv("w", "wide", "", "count", 1, 30, 8, residual="skip", relu=1)
    net.conv("t", "twice", "map0", "count", 9, 12, 8, residual="w")
    net.conv("mix", "dec.z0", "map0", "count", 9, 8, 8, residual="t")
    net.conv("yo", "mix", "", "count", 1, 8, CLASSES)
    net.conv("dead", "mix", "map0", "count", 9, 8, 3)
    net.tail("yo", mode)
    return net


def frame(seed=0, level=6.0, share=0.6):
    """Image and logits; about 1 - share of the low-resolution pixels are uncertain."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (1, CLASSES, *LOW))
    logits[0, 2] += level * (rng.random(LOW) < share)
    return {"image": rng.integers(0, 256, (*FRAME, 3), np.uint8), "logits": logits.astype(np.float32)}


def interpret(model, feeds):
    """Every tensor of the graph in float64, by the definitions."""
    values = {}
    for tensor in model.graph.initializer:
        values[tensor.name] = numpy_helper.to_array(tensor).astype(np.float64)
    values.update(feeds)
    for node in model.graph.node:
        a = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        ins = [values[name] if name else None for name in node.input]
        results = _OPS[node.op_type](ins, a)
        values.update({name: value for name, value in zip(node.output, results) if name})
    return values


def _select(ins, a):
    full = upsample(ins[0][0], (a["height"], a["width"]), a["upsample"].decode())
    e = entropy(full, 0)
    flat = np.flatnonzero(e.ravel() > a["threshold"])
    found = len(flat)
    if found > a["capacity"]:
        flat = np.sort(flat[np.argsort(-e.ravel()[flat], kind="stable")[: a["capacity"]]])
    coords = np.stack([flat // a["width"], flat % a["width"]], 1).astype(np.int32)
    return full.argmax(0).astype(np.uint8), coords, [len(flat)], [found], np.round(255 * softmax(full, 0).max(0))


def _features(ins, a):
    image, coords = ins[0], ins[1]
    columns = []
    for name in a["features"].decode().split(","):
        if name == "rgb":
            colours = image[coords[:, 0], coords[:, 1]].astype(np.float64)
            colours = colours[:, ::-1] if a["channel_order"] == b"bgr" else colours
            columns.append((colours - a["mean"]) / a["std"])
        elif name == "xy":
            columns.append(coords / [a["height"], a["width"]])
        else:
            p = softmax(ins[3], 1) if len(coords) else np.zeros((0, CLASSES))
            columns.append(p if name == "p" else p > float(name[2:]))
    return (np.concatenate(columns, 1),)


def _at(ins, a):
    full = upsample(ins[0][0], (a["height"], a["width"]), a["upsample"].decode())
    return (full[:, ins[1][:, 0], ins[1][:, 1]].T,)


def _down(ins, a):
    coords, down, up = reference_down(ins[0], a["height"], a["width"], a["extent"].decode())
    return coords, [len(coords)], down, up


def _conv(ins, a):
    x, table, _, weight, bias, residual, *norms = ins + [None] * (10 - len(ins))
    x_scale = a.get("x_scale", 0)
    x = np.clip(np.rint(x / x_scale), -127, 127) * x_scale if x_scale else x
    rows = x[:, None] if table is None else np.concatenate([x, np.zeros((1, x.shape[1]))])[table]
    y = np.einsum("nkc,kco->no", rows, weight)
    y = y + (0 if bias is None else bias) + (0 if residual is None else residual)
    y = np.maximum(y, 0) if a.get("relu", 0) else y
    return (y, *[np.maximum(y * s + t, 0) for s, t in (norms[:2], norms[2:]) if s is not None])


def _ensemble(ins, a):
    yi, yo, _, *w = ins
    if not len(yi):
        return (yi,)
    if a["mode"] == b"entropy":
        return (np.where((entropy(yi, 1) < entropy(yo, 1))[:, None], yi, yo),)
    v = np.concatenate([softmax(yi, 1), entropy(yi, 1)[:, None], softmax(yo, 1), entropy(yo, 1)[:, None]], 1)
    g = softmax(np.maximum(v @ w[0].T + w[1], 0) @ w[2].T + w[3], 1)
    m = g[:, :1] * yi + g[:, 1:] * yo
    return (np.maximum(m @ w[4].T + w[5], 0) @ w[6].T + w[7],)


def _scatter(ins, a):
    labels, confidence, coords, _, ye = ins
    labels, confidence = labels.copy(), confidence.copy()
    if len(coords):
        labels[coords[:, 0], coords[:, 1]] = ye.argmax(1)
        confidence[coords[:, 0], coords[:, 1]] = np.round(255 * softmax(ye, 1).max(1))
    return labels, confidence


_OPS = {
    "Cast": lambda ins, a: ins,
    "DequantizeLinear": lambda ins, a: (ins[0] * ins[1],),
    "Concat": lambda ins, a: (np.concatenate(ins, 1),),
    "SelectPixels": _select,
    "LogitsAt": _at,
    "PixelFeatures": _features,
    "SubmanifoldMap": lambda ins, a: (reference_submanifold(ins[0]),),
    "DownMap": _down,
    "SparseConv2d": _conv,
    "EnsembleLogits": _ensemble,
    "ScatterLabels": _scatter,
}
