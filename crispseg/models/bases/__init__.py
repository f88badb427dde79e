"""Base segmenters in PyTorch, by name.

A base is a module with ``forward_logits`` (normalised image [N,3,H,W] -> logits at the native stride, rounded up)
and ``forward`` (logits at the image's size). Everything a user of the logits must know is in its ``BaseInfo``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crispseg.errors import CheckpointError, InputError
from crispseg.models.bases.catalog import BASES
from crispseg.models.bases.info import BaseInfo, Figure

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BASES", "BaseInfo", "Figure", "base_info", "build_base"]


def base_info(name: str) -> BaseInfo:
    """Facts about the base called ``name``; "_" may stand for "-".

    Raises:
        InputError: there is no such base; the message lists those there are.
    """
    info = BASES.get(name.lower().replace("_", "-"))
    if info is None:
        raise InputError(f"base {name!r} is unknown: expected one of {', '.join(sorted(BASES))}")
    return info


def build_base(
    name: str, num_classes: int, config: Mapping[str, Any] | None = None, source: str = "checkpoint"
) -> nn.Module:
    """A base with random weights.

    Args:
        name: a key of ``BASES``.
        num_classes: classes of the logits, 2 to 255.
        config: what ``crispseg fit`` stored beside the weights; only "small" has settings of its own.
        source: the file of ``config``, for messages.

    Raises:
        InputError: unknown name, or a number of classes outside 2..255.
        CheckpointError: ``config`` belongs to another base, to other classes, or cannot be read.
    """
    name = base_info(name).name
    if not 2 <= num_classes <= 255:
        raise InputError(f"{num_classes} classes: expected 2 to 255")
    if config is not None and (config.get("architecture"), config.get("num_classes")) != (name, num_classes):
        raise CheckpointError(
            f"{source}: expected base {name!r} with {num_classes} classes, found {config.get('architecture')!r} "
            f"with {config.get('num_classes')!r}; choose the base and the classes it was trained with"
        )
    if name == "small":
        from crispseg.models.bases import small

        if config is None:
            return small.SmallNet(num_classes)
        try:
            return small.from_config(dict(config))
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, MemoryError) as error:
            found = f"no {error.args[0]!r}" if isinstance(error, KeyError) else f"{error!r}"
            raise CheckpointError(
                f"{source}: expected the settings of a base 'small', found {found}; use the version of crispseg that "
                "trained it, or train it again"
            ) from error
    family, _, variant = name.partition("-")
    if family == "sanet":
        from crispseg.models.bases.sanet import SANet

        return SANet(num_classes, tiny=variant == "tiny")
    if family == "srnet":
        from crispseg.models.bases.srnet import SRNet

        return SRNet(num_classes, int(variant[1:]))
    if family == "segnext":
        from crispseg.models.bases.segnext import SegNeXt

        return SegNeXt(num_classes)
    if family == "hrnet":
        from crispseg.models.bases.hrnet import FCNHRNet

        return FCNHRNet(num_classes)
    if family == "segformer":
        from crispseg.models.bases.segformer import SegFormer

        return SegFormer(num_classes)
    if family == "mask2former":
        from crispseg.models.bases.mask2former import Mask2Former

        return Mask2Former(num_classes, large=variant == "swin-l")
    from crispseg.models.bases.sfnet import SFNet

    return SFNet(num_classes, variant[len("lite-") :] if variant.startswith("lite-") else variant, "lite-" in name)
