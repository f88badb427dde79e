"""CRM -> three ONNX graphs that compute the same in far less: opset 17, standard operators, no shape arithmetic.

- ``backbone``: picture and mask -> the three branches of the fusion. No fourth stage. Any size.
- ``fusion``: a window of the branches -> projected features. The two upsamplings are products with interpolation
  matrices, which are data, so that a window takes part in the global alignment of corners; a border of one cell is
  input, so that windows join without a seam. Ends with the feature part of the MLP's first layer (256 -> 32).
- ``decoder``: a block of queries. All four shifted reads lie on one grid of twice the block's rows and columns, because
  the read cells and the relative coordinates of a grid are separable: two Gathers and two sums of tables replace
  GridSample and the first layer, and the rest of the MLP is four 1x1 convolutions.

Cells and coordinates are computed outside in float32 (runtime/crm_tables.py). The epsilon of the areas stays: without
it a query in the centre of a cell at the border would be 0 / 0.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from crispseg.errors import UnsupportedOp
from crispseg.export.dense import OPSET, check_operators, stamp
from crispseg.export.fold import drop_unused, fold_constants, merge_equal, rename_readably
from crispseg.models.refiners.crm import AREA_EPSILON, CRM, FEATURES, HIDDEN

BACKBONE_FILE, FUSION_FILE, DECODER_FILE = "backbone.onnx", "fusion.onnx", "decoder.onnx"
#: Queries of one decoder call, rows and columns.
BLOCK = (64, 128)
_FLOAT, _INT = int(TensorProto.FLOAT), int(TensorProto.INT64)
Ports = Mapping[str, "tuple[list[Any], int]"]  # name -> shape (a text is a free size), type


def patch_size(block: Sequence[int]) -> tuple[int, int]:
    """Cells (rows, columns) that a block of queries can touch at most: half as many as queries, and the shifts."""
    return block[0] // 2 + 4, block[1] // 2 + 4


class _Backbone(nn.Module):
    def __init__(self, model: CRM) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model.branches(x)


class _Fusion(nn.Module):
    def __init__(self, model: CRM) -> None:
        super().__init__()
        conv, self.norm, self.relu = model.aspp_.last_conv
        self.conv = nn.Conv2d(FEATURES, FEATURES, 3, bias=False)  # the border is input
        self.conv.load_state_dict(conv.state_dict())
        first = model.imnet.linear[0]
        self.project = nn.Conv2d(FEATURES, HIDDEN, 1)
        self.project.weight = nn.Parameter(first.weight[:, :FEATURES, None, None].detach())
        self.project.bias = first.bias

    def forward(
        self, first: Tensor, second: Tensor, rows2: Tensor, columns2: Tensor, third: Tensor, rows3: Tensor,
        columns3: Tensor,
    ) -> Tensor:  # fmt: skip
        second = torch.matmul(rows2, torch.matmul(second, columns2))
        third = torch.matmul(rows3, torch.matmul(third, columns3))
        x = self.project(self.relu(self.norm(self.conv(torch.cat([first, second, third], dim=1)))))
        return x.permute(0, 3, 1, 2)


class _Decoder(nn.Module):
    def __init__(self, model: CRM, block: Sequence[int]) -> None:
        super().__init__()
        first, *rest = model.imnet.linear
        terms: Tensor = first.weight[:, FEATURES:].detach()  # relative, absolute, cell; each (y, x)
        self.row_weight, self.column_weight = nn.Parameter(terms[:, 0::2]), nn.Parameter(terms[:, 1::2])
        self.layers = nn.ModuleList(nn.Conv2d(layer.in_features, layer.out_features, 1) for layer in rest)
        for conv, layer in zip(self.layers, rest, strict=True):
            conv.weight, conv.bias = nn.Parameter(layer.weight[:, :, None, None].detach()), layer.bias
        self.block = (int(block[0]), int(block[1]))

    def forward(
        self, projected: Tensor, row_cells: Tensor, row_terms: Tensor, column_cells: Tensor, column_terms: Tensor
    ) -> Tensor:
        rows, columns = self.block
        # Whole columns are copied: a Gather of single numbers along the last axis takes five times as long.
        x = torch.index_select(projected, 1, column_cells).permute(0, 2, 3, 1)
        x = x + torch.matmul(self.column_weight, column_terms)[:, None]
        x = torch.index_select(x, 2, row_cells) + torch.matmul(self.row_weight, row_terms)[:, :, None]
        for layer in self.layers:
            x = layer(torch.relu(x))
        area = torch.abs(row_terms[0][:, None] * column_terms[0][None]) + AREA_EPSILON
        area = area.reshape(2, rows, 2, columns)
        # The weight of a shifted read is the area of the opposite one.
        opposite = torch.cat([area[1:], area[:1]])
        opposite = torch.cat([opposite[:, :, 1:], opposite[:, :, :1]], dim=2)
        blended = (x.reshape(2, rows, 2, columns) * opposite).sum(dim=(0, 2))
        return blended / area.sum(dim=(0, 2))


def crm_graphs(model: CRM, block: Sequence[int] = BLOCK) -> dict[str, onnx.ModelProto]:
    """The three graphs by file name.

    Inputs and outputs (float32 unless said; the letters are free sizes):
        backbone: ``picture`` [1,4,H,W] -> ``first`` [1,64,h,w] at 1/2, ``second`` [1,64,..] at 1/4, ``third``
            [1,128,..] at 1/8, sizes rounded up.
        fusion: ``first`` [1,64,a+2,b+2], ``second`` [1,64,c,d], ``rows2`` [a+2,c], ``columns2`` [d,b+2], ``third``
            [1,128,e,f], ``rows3`` [a+2,e], ``columns3`` [f,b+2] -> ``projected`` [1,b,32,a], column by column. Outside
            the picture ``first`` and the matrices are 0.
        decoder: ``projected`` [1,n,32,m] with (m, n) = patch_size(block), ``row_cells`` int64 [2R] and ``row_terms``
            [3,2R] (relative y, y, cell height in cells; first the R reads shifted by -1, then those by +1), columns
            alike -> ``logits`` [R,C].

    Raises:
        UnsupportedOp: the network does not export.
    """
    rows, columns = block
    patch = patch_size(block)
    tables: Ports = {
        "row_cells": ([2 * rows], _INT),
        "row_terms": ([3, 2 * rows], _FLOAT),
        "column_cells": ([2 * columns], _INT),
        "column_terms": ([3, 2 * columns], _FLOAT),
    }
    branches: Ports = {
        "first": ([1, 64, "rows+2", "columns+2"], _FLOAT),
        "second": ([1, 64, "height2", "width2"], _FLOAT),
        "rows2": (["rows+2", "height2"], _FLOAT),
        "columns2": (["width2", "columns+2"], _FLOAT),
        "third": ([1, 128, "height3", "width3"], _FLOAT),
        "rows3": (["rows+2", "height3"], _FLOAT),
        "columns3": (["width3", "columns+2"], _FLOAT),
    }
    maps: Ports = {name: ([1, count, f"{name}_h", f"{name}_w"], _FLOAT) for name, count in _BRANCHES}
    return {
        BACKBONE_FILE: _export(_Backbone(model), {"picture": ([1, 4, "height", "width"], _FLOAT)}, maps),
        FUSION_FILE: _export(_Fusion(model), branches, {"projected": ([1, "columns", HIDDEN, "rows"], _FLOAT)}),
        DECODER_FILE: _export(
            _Decoder(model, block),
            {"projected": ([1, patch[1], HIDDEN, patch[0]], _FLOAT), **tables},
            {"logits": ([rows, columns], _FLOAT)},
        ),
    }


_BRANCHES = (("first", 64), ("second", 64), ("third", 128))
_PROBE = {"height": 32, "width": 48, "rows+2": 8, "columns+2": 12, "height2": 5, "width2": 7, "height3": 3, "width3": 4}


def _export(module: nn.Module, inputs: Ports, outputs: Ports) -> onnx.ModelProto:
    """Trace ``module`` and tidy the graph; sizes given by name are free."""
    probe = []
    for shape, kind in inputs.values():
        sizes = [_PROBE[side] if isinstance(side, str) else side for side in shape]
        probe.append(torch.zeros(sizes, dtype=torch.int64 if kind == _INT else torch.float32))
    free = {
        name: {i: side for i, side in enumerate(shape) if isinstance(side, str)}
        for name, (shape, _) in {**inputs, **outputs}.items()
    }
    buffer = io.BytesIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(probe),
                buffer,  # type: ignore[arg-type]  # the trace based exporter writes to any stream
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: axes for name, axes in free.items() if axes},
                do_constant_folding=True,
            )
    finally:
        logger.setLevel(level)
    model = onnx.load_model_from_string(buffer.getvalue())
    graph = model.graph
    del graph.value_info[:]
    fold_constants(model)
    merge_equal(graph)
    drop_unused(graph)
    rename_readably(graph, drop=("model",))
    check_operators(model)
    for ports, own in ((inputs, graph.input), (outputs, graph.output)):
        del own[:]
        own.extend(helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in ports.items())
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    stamp(model)
    onnx.checker.check_model(model, full_check=True)
    found = sorted({node.op_type for node in graph.node} & {"GridSample", "ScatterND", "ScatterElements", "Resize"})
    if found:
        raise UnsupportedOp(
            f"exported graph: expected no {', '.join(found)}, found some; this is a mistake of crispseg"
        )
    return model
