"""What a failed build means: TensorRT's log -> one line with the node and the remedy. Plain text, no TensorRT."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

from crispseg.errors import CrispsegError, EnvironmentMismatch, UnsupportedOp

# Severity, text.
Message = Tuple[str, str]

_NO_IMPLEMENTATION = re.compile(
    r"could not find any implementation for node\s+(.*?)(?:\s+due to insufficient|,|\.?\)?$)", re.I
)
# Seen across 7.x to 10.x: NVIDIA/TensorRT#469 and #749 print the first three forms in front of "could not find any
# implementation", which by itself says nothing about memory.
_MEMORY = re.compile(
    r"out of memory|OutOfMemory|memory allocation error|insufficient (?:memory|workspace)|memory is insufficient|"
    r"do not have sufficient workspace|requested size of (\d+)",
    re.I,
)
_REQUEST = re.compile(
    r"requested? (?:size of|:|amount of GPU memory \()\s*(\d+)|Tactic Device request:\s*(\d+)MB", re.I
)
_PLUGIN = re.compile(r"plugin (?:not found|creator)|getPluginCreator|find plugin|no importer registered", re.I)
_DRIVER = re.compile(
    r"CUDA (?:initialization|driver)|CUDA error \d+|no CUDA-capable device|insufficient driver|error code: 35", re.I
)


def explain(messages: Sequence[Message], what: str, workspace_mib: Optional[int], precision: str) -> CrispsegError:
    """The exception for a build that gave no engine.

    Args:
        messages: everything that was logged, oldest first.
        what: the network, for the message.
        workspace_mib: the limit that was set, None = all memory of the device.
        precision: that was asked for.
    """
    texts = [text for _, text in messages]
    node = _first(_NO_IMPLEMENTATION, texts)
    memory = [text for text in texts if _MEMORY.search(text)]
    if memory:
        where = " at node %s" % _short(node) if node else ""
        wanted = _largest_request(memory)
        need = ", where a layer asked for %d MiB" % wanted if wanted else ""
        limit = "all memory of the device" if workspace_mib is None else "--workspace %d MiB" % workspace_mib
        if workspace_mib is not None and (wanted is None or wanted > workspace_mib):
            remedy = "raise it: --workspace %d, or leave --workspace out" % _next_workspace(wanted or 2 * workspace_mib)
        else:
            remedy = "close other programs that use the GPU, or export the bundle for a smaller size"
            if precision == "fp32":
                remedy += ", or use --precision fp16 (half the memory)"
            if workspace_mib is not None:
                remedy += ", or lower --workspace"
        return EnvironmentMismatch("%s: out of memory%s (limit: %s%s); %s" % (what, where, limit, need, remedy))
    errors = [text for severity, text in messages if severity == "error"]
    last = " ".join((errors or texts or ["TensorRT gave no reason"])[-1].split())[:300]
    if any(_DRIVER.search(text) for text in errors):
        return EnvironmentMismatch(
            "%s: TensorRT cannot use the GPU: %s; run `crispseg doctor` and update the driver" % (what, last)
        )
    if any(_PLUGIN.search(text) for text in errors):
        return UnsupportedOp("%s: a plugin is missing: %s; build the plugin library (crispseg doctor)" % (what, last))
    if node:
        return UnsupportedOp(
            "%s: TensorRT has no implementation of node %s at precision %s: %s; try --precision fp32, or leave out "
            "--dla, --workspace and --opt-level" % (what, _short(node), precision, last)
        )
    return UnsupportedOp(
        "%s: TensorRT built no engine: %s; try --precision fp32, and `crispseg verify` to check the bundle itself"
        % (what, last)
    )


def explain_parse(errors: Sequence[dict], names: Sequence[str], what: str, release: str) -> UnsupportedOp:
    """The exception for a network that does not parse.

    Args:
        errors: of ``compat.parser_messages``.
        names: "name (operator)" of every node of the network, in order.
        what: the network, for the message.
        release: version of TensorRT.
    """
    first: Dict[str, Any] = errors[0] if errors else {"text": "no reason given", "node": -1, "name": "", "operator": ""}
    index = first["node"]
    if first["name"]:
        node = "%s (%s)" % (first["name"], first["operator"])
    else:
        node = names[index] if 0 <= index < len(names) else "unknown"
    more = " (and %d more errors)" % (len(errors) - 1) if len(errors) > 1 else ""
    remedy = "use --backend onnxruntime or native for this network, or a newer TensorRT"
    if "plugin" in first["text"].lower():
        remedy = "build the plugin library for this TensorRT (crispseg doctor)"
    return UnsupportedOp(
        "%s: node %s does not parse in TensorRT %s: %s%s; %s"
        % (what, node, release, " ".join(first["text"].split())[:300], more, remedy)
    )


def _first(pattern: "re.Pattern[str]", texts: Sequence[str]) -> str:
    for text in texts:
        found = pattern.search(" ".join(text.split()))
        if found:
            return found.group(1).strip()
    return ""


def _short(node: str) -> str:
    return node if len(node) <= 120 else node[:117] + "..."


def _largest_request(texts: List[str]) -> Optional[int]:
    """Largest amount that a message names, MiB."""
    found = []
    for text in texts:
        for nbytes, mib in _REQUEST.findall(text):
            found.append(int(mib) if mib else -(-int(nbytes) // (1 << 20)))
    return max(found) if found else None


def _next_workspace(mib: int) -> int:
    size = 64
    while size < mib:
        size *= 2
    return size
