"""The bases by name: facts, the authors' figures, and the conventions of their checkpoints.

Figures are quoted, not measured here. Values that can only be read off a plot are left out.
"""

from __future__ import annotations

from crispseg.models.bases.info import BaseInfo, Figure

_SFNET = "Semantic Flow for Fast and Accurate Scene Parsing, ECCV 2020, arXiv 2002.10120"
_LITE = "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow, IJCV 2023, arXiv 2207.04415"
_SRNET = "Towards Efficient Scene Understanding via Squeeze Reasoning, IEEE TIP 2021, arXiv 2011.03308"
_SANET = "Exploring Scale-Aware Features for Real-Time Semantic Segmentation of Street Scenes, K. Li, Q. Geng, Z. Zhou"

_SFSEGNETS = "github.com/lxtGH/SFSegNets"
_CHECKPOINT = "dict of state_dict, optimizer, epoch, mean_iu (a numpy scalar), command; keys begin with module."
_STDC_CHECKPOINT = _CHECKPOINT + "; every backbone block is stored twice, and the ImageNet classifier is inside"

# Training-only heads. In SFNet-Lite the third lateral is built but never used.
_AUXILIARY = (r"head\.dsn\.", r"aux_layer\.")
_LITE_AUXILIARY = (*_AUXILIARY, r"head\.fpn_in\.2\.")
# The classifier of ImageNet, and the second names under which the same blocks are stored.
_STDC_AUXILIARY = (
    r"head\.dsn\.",
    r"aux_layer\.",
    r"backbone\.(conv_last|fc|bn|linear)\.",
    r"backbone\.x(2|4|8|16|32)\.0\.",
)


def _sfnet(
    name: str,
    stride: int,
    parameters: int,
    macs: int,
    *figures: Figure,
    paper: str = _SFNET,
    droppable: tuple[str, ...] = _AUXILIARY,
    checkpoint: str = _CHECKPOINT,
) -> BaseInfo:
    return BaseInfo(
        name,
        stride,
        upsample="bilinear_corners",
        paper=paper,
        droppable=droppable,
        classes=(19,),
        parameters=parameters,
        macs=macs,
        figures=figures,
        checkpoint=checkpoint,
        code=_SFSEGNETS,
    )


def _lite(
    name: str, parameters: int, macs: int, droppable: tuple[str, ...], checkpoint: str, *figures: Figure
) -> BaseInfo:
    return _sfnet(name, 4, parameters, macs, *figures, paper=_LITE, droppable=droppable, checkpoint=checkpoint)


def _sanet(name: str, stride: int, parameters: int, macs: int, *figures: Figure) -> BaseInfo:
    return BaseInfo(
        name,
        stride,
        upsample="bilinear_corners" if stride > 1 else "bilinear",
        paper=_SANET,
        droppable=(r"conv_out16\.",),
        classes=(19, 11),
        parameters=parameters,
        macs=macs,
        figures=figures,
        checkpoint="bare state dict without prefix, auxiliary head conv_out16 inside; no trained weights are published",
        code="github.com/kaigelee/SANet",
    )


def _speeds(rtx3090: float, rtx2080s: float, xavier: float) -> tuple[tuple[str, float], ...]:
    return (("RTX 3090", rtx3090), ("RTX 2080 Super Max-Q", rtx2080s), ("Jetson AGX Xavier 32 GB", xavier))


_SFNETS = (
    _sfnet(
        "sfnet-r18",
        4,
        12_869_715,
        242_964_627_456,
        Figure("Cityscapes val", 79.0),
        Figure(
            "Cityscapes test",
            80.4,
            "1024x2048",
            (("GTX 1080 Ti, TensorRT with a grid-sample kernel of their own", 26.0),),
            "arXiv 2002.10120, abstract",
        ),
    ),
    _sfnet("sfnet-r50", 4, 31_325_139, 663_317_643_264, Figure("Cityscapes val", 80.4)),
    _sfnet("sfnet-r101", 4, 50_317_267, 818_473_336_832),
    _sfnet("sfnet-dfv1", 16, 8_422_387, 32_726_384_640, Figure("Cityscapes val", 72.2)),
    _sfnet("sfnet-dfv2", 8, 17_876_467, 79_969_189_888, Figure("Cityscapes val", 75.8)),
    _sfnet("sfnet-stdc1", 4, 5_992_371, 59_436_564_480, droppable=_STDC_AUXILIARY, checkpoint=_STDC_CHECKPOINT),
    _sfnet("sfnet-stdc2", 4, 10_022_835, 85_810_348_032, droppable=_STDC_AUXILIARY, checkpoint=_STDC_CHECKPOINT),
    _lite(
        "sfnet-lite-r18",
        12_079_863,
        177_947_148_288,
        _LITE_AUXILIARY,
        _CHECKPOINT,
        Figure("Cityscapes", 80.1, None, (("TITAN RTX", 50.0),)),
        Figure("Cityscapes test", 80.1, None, (("RTX 3090", 60.0),), "arXiv 2207.04415, abstract"),
    ),
    _lite(
        "sfnet-lite-stdc1",
        6_433_623,
        74_148_741_120,
        _STDC_AUXILIARY,
        _STDC_CHECKPOINT,
        Figure("Cityscapes", 78.8, None, (("TITAN RTX", 120.0),)),
        Figure("Cityscapes test", 78.8, None, (("RTX 3090", 120.0),), "arXiv 2207.04415, abstract"),
    ),
    _lite("sfnet-lite-stdc2", 10_464_087, 100_522_524_672, _STDC_AUXILIARY, _STDC_CHECKPOINT),
)

_SRNETS = (
    _sfnet("srnet-r50", 8, 27_447_395, 978_891_843_584, paper=_SRNET),
    _sfnet("srnet-r101", 8, 46_439_523, 1_599_514_617_856, paper=_SRNET),
)

# SANet-50, -75 and -100 are one network at three input sizes. The script behind the frame rates times another,
# smaller network (no BatchNorm, one fusion instead of two), so they do not belong to this graph.
_SOURCE = "README; the speed script times a smaller network"
_SANETS = (
    _sanet(
        "sanet",
        1,
        12_566_548,
        154_621_514_752,
        Figure("Cityscapes val", 73.7, "512x1024", (), "README, SANet-50"),
        Figure("Cityscapes test", 72.7, "512x1024", _speeds(309.7, 115.1, 34.3), _SOURCE),
        Figure("Cityscapes val", 77.6, "768x1536", (), "README, SANet-75"),
        Figure("Cityscapes test", 76.6, "768x1536", _speeds(167.3, 61.9, 16.4), _SOURCE),
        Figure("Cityscapes val", 79.1, "1024x2048", (), "README, SANet-100"),
        Figure("Cityscapes test", 78.1, "1024x2048", _speeds(109.0, 36.3, 9.7), _SOURCE),
        Figure("CamVid test", 77.2, "720x960", _speeds(250.4, 98.8, 26.8), _SOURCE),
    ),
    _sanet("sanet-tiny", 8, 12_412_135, 149_600_932_864),
)

_MMSEG_CHECKPOINT = "MMSegmentation: dict of meta and state_dict; keys begin with backbone. or decode_head."

_MASK2FORMER = "Masked-attention Mask Transformer for Universal Image Segmentation, CVPR 2022, arXiv 2112.01527"
_OUTDATED = (
    r"decode_head\..*\.(attentions\.\d|ffns\.0)\.",
    "expected key names of MMSegmentation 1.0 or newer, found older ones (attentions.0, ffns.0); convert the file with "
    "the script in MMSegmentation's pull request 2532, or take the present file of its model zoo",
)


def _mask2former_figures(single: float, flipped: float, mmseg: float) -> tuple[Figure, ...]:
    return (
        Figure("Cityscapes val", single, None, (), "model zoo of facebookresearch/Mask2Former, single scale"),
        Figure("Cityscapes val", flipped, None, (), "the same, several scales and flipped"),
        Figure("Cityscapes val", mmseg, None, (), "MMSegmentation's configs/mask2former, single scale"),
    )


def _mask2former(name: str, classes: tuple[int, ...], parameters: int, macs: int, *figures: Figure) -> BaseInfo:
    return BaseInfo(
        name,
        1,
        upsample="nearest",
        pad_to=32,
        paper=_MASK2FORMER,
        droppable=(r"auxiliary_head\.", r"backbone\.stages\..*\.relative_position_index$"),
        refused=_OUTDATED,
        classes=classes,
        parameters=parameters,
        macs=macs,
        figures=figures,
        checkpoint=_MMSEG_CHECKPOINT + "; of MMSegmentation 1.0 or newer; scores come out as logarithms",
        code="github.com/open-mmlab/mmsegmentation",
    )


_MMSEG = (
    BaseInfo(
        "segnext-l",
        8,
        pad_to=32,
        paper="SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation, NeurIPS 2022, "
        "arXiv 2209.08575",
        droppable=(r"auxiliary_head\.",),
        classes=(19, 150),
        parameters=48_792_275,
        macs=523_322_523_648,
        figures=(Figure("Cityscapes val", 83.2, None, (), "README, single scale"),),
        checkpoint=_MMSEG_CHECKPOINT + "; no key tells the rank of the Hamburger's factorisation (taken to be 16)",
        code="github.com/Visual-Attention-Network/SegNeXt",
    ),
    BaseInfo(
        "hrnet-w48",
        4,
        paper="Deep High-Resolution Representation Learning for Visual Recognition, TPAMI 2020, arXiv 1908.07919",
        droppable=(r"auxiliary_head\.",),
        classes=(19, 21, 60, 150),
        parameters=65_858_659,
        macs=747_513_053_184,
        figures=(Figure("Cityscapes val", 80.65, None, (), "MMSegmentation's configs/hrnet, 160000 steps"),),
        checkpoint=_MMSEG_CHECKPOINT,
        code="github.com/open-mmlab/mmsegmentation",
    ),
    BaseInfo(
        "segformer-b5",
        4,
        paper="SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers, NeurIPS 2021, "
        "arXiv 2105.15203",
        droppable=(r"auxiliary_head\.",),
        classes=(19, 150),
        parameters=81_974_739,
        macs=1_161_893_511_168,
        figures=(
            Figure(
                "Cityscapes val", 82.25, None, (), "MMSegmentation's configs/segformer, sliding window of 1024x1024"
            ),
        ),
        checkpoint=_MMSEG_CHECKPOINT,
        code="github.com/open-mmlab/mmsegmentation",
    ),
    _mask2former(
        "mask2former-swin-t", (19, 150), 47_405_966, 533_362_080_768, *_mask2former_figures(82.1, 83.0, 81.71)
    ),
    _mask2former(
        "mask2former-swin-l", (19, 150), 215_455_112, 1_899_366_924_288, *_mask2former_figures(83.3, 84.3, 83.65)
    ),
)

BASES: dict[str, BaseInfo] = {
    info.name: info
    for info in (
        *_SFNETS,
        *_SRNETS,
        *_SANETS,
        *_MMSEG,
        BaseInfo("small", 8, checkpoint="best.pt of crispseg fit base, which says its own settings"),
    )
}
