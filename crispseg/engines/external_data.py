"""Where an ONNX file's external data may lie: beside it, under a plain name.

Not every ONNX Runtime refuses other paths (1.19 follows them, 1.31 refuses); a bundle is untrusted, so the
paths are checked before the file is handed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

from crispseg.errors import BundleError


def check_external_data(path: Path) -> None:
    """Refuse external data outside the directory of the file.

    Raises:
        BundleError: the file is no ONNX, or a tensor points elsewhere or to a file that is not there.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own types
        text = " ".join(str(error).split())[:200]
        raise BundleError(
            "%s: expected a valid ONNX network, found %s; copy or export the bundle again" % (path, text)
        ) from None
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        plain = where not in ("", ".", "..") and "/" not in where and "\\" not in where and "\0" not in where
        target = path.parent / where if plain else None
        if target is None or target.is_symlink() or not target.is_file():
            raise BundleError(
                "%s: tensor %r: expected its data in a file of the bundle, found %r; export the bundle again"
                % (path, tensor.name[:60], where[:100])
            )


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model: initialisers and attributes, also inside subgraphs and functions."""
    pending = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        for tensor in getattr(graph, "initializer", ()):
            yield tensor
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield sparse.values
            yield sparse.indices
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    yield attribute.sparse_tensor.values
                    yield attribute.sparse_tensor.indices
                for tensor in attribute.tensors:
                    yield tensor
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)
