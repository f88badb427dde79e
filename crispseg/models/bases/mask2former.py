"""Mask2Former on Swin: a hundred queries, each with a class and a mask.

Masked-attention Mask Transformer for Universal Image Segmentation (CVPR 2022, arXiv 2112.01527). Names and shapes of
the weights are those of MMSegmentation 1.x.

The network has no logits. A class' score at a pixel is the sum, over the queries, of their probability of the class
times their mask's value there; it can exceed 1. SparseRefine takes the logarithm of the score, clipped at 1e-10, for a
logit, so that is what comes out here, at the size of the image: masks are enlarged before their sigmoid, and what comes
after it cannot be computed at their stride.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crispseg.models.bases.mask2former_pixels import LEVELS, WIDTH, PixelDecoder, sine_encoding
from crispseg.models.bases.mask2former_queries import TransformerDecoder, attention_bias, keys_and_values
from crispseg.models.bases.mmseg import resize, spatial
from crispseg.models.bases.swin import Swin

#: Settings of the backbones: channels, depths, heads, side of a window.
SWIN_T = (96, (2, 2, 6, 2), 3, 7)
SWIN_L = (192, (2, 2, 18, 2), 6, 12)
QUERIES = 100
FLOOR = 1e-10  # of a score before its logarithm

Prediction = tuple[Tensor, Tensor]


class Scores(nn.Module):
    """From the queries' classes and masks to a score for each class and pixel."""

    def forward(self, classes: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Class logits [N,Q,C+1] (the last: no object), masks [N,Q,h,w] -> scores [N,C,*size], 0 or more."""
        shares = torch.softmax(classes, dim=-1)[..., :-1].transpose(1, 2)
        scores = shares @ self.inside(masks, size).flatten(2)
        return scores.reshape(int(masks.shape[0]), -1, *size)

    def inside(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Probabilities [N,Q,*size] of masks [N,Q,h,w]."""
        if not torch.onnx.is_in_onnx_export():
            return torch.sigmoid(resize(masks, size))
        # ONNX Runtime's Sigmoid is off by 6e-8 and 0 below -18; the logarithm would show it.
        return torch.reciprocal(torch.exp(resize(-masks, size)) + 1)


class Logarithm(nn.Module):
    """Scores as logits."""

    def forward(self, scores: Tensor) -> Tensor:
        """0 or more, any shape -> ln(max(score, 1e-10))."""
        return torch.log(scores.clamp(min=FLOOR))


class Mask2FormerHead(nn.Module):
    """Pixel decoder, transformer decoder, and what reads classes and masks off the queries."""

    def __init__(self, dims: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(dims)
        self.transformer_decoder = TransformerDecoder()
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.query_feat = nn.Embedding(QUERIES, WIDTH)
        self.level_embed = nn.Embedding(LEVELS, WIDTH)
        self.cls_embed = nn.Linear(WIDTH, classes + 1)
        layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
        self.mask_embed = nn.Sequential(*layers)

    def forward(self, maps: list[Tensor]) -> Prediction:
        """Four maps -> class logits [N,100,C+1] and masks [N,100,h,w] at stride 4, after the last layer."""
        return self.predictions(maps)[-1]

    def predictions(self, maps: list[Tensor]) -> list[Prediction]:
        """What ``forward`` returns for the same four maps, before the first layer and after each.

        An exported graph saves products. Only its last masks are whole: the others say where the next layer may look,
        and are made at the size of that layer's map, from features of that size. And the 1x1 convolution before the
        masks acts on the queries' side.
        """
        fine, memory = self.pixel_decoder(maps)
        sizes = [spatial(x) for x in memory]
        pairs = keys_and_values(memory, self.level_embed.weight, [sine_encoding(s, fine.device) for s in sizes])
        if torch.onnx.is_in_onnx_export():
            features = [resize(fine, size) for size in sizes]
        else:
            fine = self.pixel_decoder.mask_feature(fine)
            features = [fine] * LEVELS
        x = self.query_feat.weight[None].repeat(int(fine.shape[0]), 1, 1)
        found = []
        for index, layer in enumerate(self.transformer_decoder.layers):
            level = index % LEVELS
            found.append(self.predict(x, features[level]))
            bias = attention_bias(resize(found[-1][1], sizes[level]).flatten(2))
            x = layer(x, self.query_embed.weight, *pairs[level], bias)
        return [*found, self.predict(x, fine)]

    def predict(self, x: Tensor, features: Tensor) -> Prediction:
        """Queries [N,100,256] -> class logits, and masks of the size of ``features``."""
        x = self.transformer_decoder.post_norm(x)
        y = self.mask_embed(x)
        if torch.onnx.is_in_onnx_export():
            weight, bias = self.pixel_decoder.mask_feature.parameters()
            masks = y @ weight.flatten(1) @ features.flatten(2) + y @ bias[:, None]
        else:
            masks = y @ features.flatten(2)
        return self.cls_embed(x), masks.reshape(int(x.shape[0]), QUERIES, *spatial(features))


class Mask2Former(nn.Module):
    """Mask2Former on Swin-T (trained on ImageNet-1k, windows of 7) or Swin-L (ImageNet-22k, windows of 12).

    Args:
        num_classes: classes of the logits.
        large: Swin-L.
    """

    #: Nodes of the exported graph, by patterns of their names, that a conversion to half precision must leave alone:
    #: the LayerNorms square, and scores reach down to 1e-10.
    float32_nodes = (
        r"backbone\.(patch_embed\.|stages.*\.)?norm\d?/",
        r"decode_head\..*\.(norms\.\d|post_norm)/",
        r"scores/",
        r"logarithm/",
    )

    def __init__(self, num_classes: int, large: bool = False) -> None:
        super().__init__()
        self.backbone = Swin(*(SWIN_L if large else SWIN_T))
        self.decode_head = Mask2FormerHead(self.backbone.dims, num_classes)
        self.scores = Scores()
        self.logarithm = Logarithm()

    def class_scores(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> scores [N,classes,H,W], 0 or more; no probabilities."""
        return self.scores(*self.decode_head(self.backbone(image)), spatial(image))

    def forward_logits(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logarithms [N,classes,H,W] of the scores, -23.03 or more."""
        return self.logarithm(self.class_scores(image))

    def forward(self, image: Tensor) -> Tensor:
        """Same as ``forward_logits``."""
        return self.forward_logits(image)
