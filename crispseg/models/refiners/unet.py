"""The sparse U-Net of SparseRefine: rows of active pixels in, rows of features out.

Modules nest exactly as the official ones do, so that the state dict keys come out the same; modules without parameters
are stood in for by Identity. Properties give every part a name: code that walks the network needs no key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from crispseg.sparse.conv import flipped, sparse_conv2d
from crispseg.sparse.maps import LevelMaps

Probe = Callable[[str, Tensor], None]


def _at(modules: Any, *path: int) -> Any:
    """Module at a path of indices. Any, because ModuleList does not know the type of its entries."""
    for index in path:
        modules = modules[index]
    return modules


def _tell(probe: Optional[Probe], name: str, value: Tensor) -> None:
    if probe is not None:
        probe(name, value)


class RowNorm(nn.BatchNorm1d):
    """BatchNorm over rows [N, C].

    Zero rows pass through. A single row has no variance: in training it takes the running statistics.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C] -> float [N, C]."""
        if x.shape[0] == 0:
            return x
        if self.training and x.shape[0] == 1:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


class RowConv(nn.Module):
    """Sparse convolution without bias: kernel [9, Cin, Cout], or [Cin, Cout] for one tap on the row itself."""

    def __init__(self, inputs: int, outputs: int, taps: int = 9) -> None:
        """Draw the kernel from a normal distribution that keeps the variance through a ReLU."""
        super().__init__()
        self.taps = taps
        shape = (inputs, outputs) if taps == 1 else (taps, inputs, outputs)
        self.kernel = nn.Parameter(torch.randn(shape) * (2.0 / (taps * inputs)) ** 0.5)

    def forward(self, x: Tensor, kernel_map: Optional[Tensor] = None, transposed: Optional[Tensor] = None) -> Tensor:
        """Float [Nin, Cin], long [M, 9] and optionally its transpose -> float [M, Cout]."""
        if kernel_map is None:
            return x @ self.kernel
        return sparse_conv2d(x, kernel_map, self.kernel, transposed)


def _norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x).relu()


class Block(nn.ModuleList):
    """Pre-activation residual block: shortcut(x) + conv2(relu(norm2(conv1(relu(norm1(x))))))."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """The shortcut is a product with the raw rows when the channels differ, else the identity."""
        main = [RowNorm(inputs), nn.ReLU(), RowConv(inputs, outputs), RowNorm(outputs), nn.ReLU()]
        skip = nn.Identity() if inputs == outputs else RowConv(inputs, outputs, taps=1)
        super().__init__([skip, nn.ModuleList([*main, RowConv(outputs, outputs)])])

    @property
    def shortcut(self) -> Optional[RowConv]:
        """Product on the way around, None for the identity."""
        return _at(self, 0) if isinstance(self[0], RowConv) else None

    @property
    def norm1(self) -> RowNorm:
        """First norm."""
        return _at(self, 1, 0)

    @property
    def conv1(self) -> RowConv:
        """First convolution."""
        return _at(self, 1, 2)

    @property
    def norm2(self) -> RowNorm:
        """Second norm."""
        return _at(self, 1, 3)

    @property
    def conv2(self) -> RowConv:
        """Second convolution."""
        return _at(self, 1, 5)

    def forward(self, x: Tensor, same: Tensor) -> Tensor:
        """Float [N, Cin], submanifold map long [N, 9] -> float [N, Cout]."""
        back = flipped(same)
        y = self.conv1(_norm_relu(self.norm1, x), same, back)
        y = self.conv2(_norm_relu(self.norm2, y), same, back)
        return y + (x if self.shortcut is None else self.shortcut(x))


class Descent(nn.ModuleList):
    """Everything between the encoder and the decoder of a level: down, the level below, up."""

    def __init__(self, planes: Sequence[int], repeats: Sequence[int], depth: int) -> None:
        """The first two planes are those of this level and of the one below."""
        here, below = planes[:2]
        down = [RowNorm(here), nn.ReLU(), RowConv(here, below)]
        up = [RowNorm(below), nn.ReLU(), RowConv(below, here)]
        super().__init__([*down, Level(planes[1:], repeats[1:], depth + 1), *up])

    @property
    def norm_down(self) -> RowNorm:
        """Norm before `down`."""
        return _at(self, 0)

    @property
    def down(self) -> RowConv:
        """Stride-2 convolution, c_l -> c_{l+1}."""
        return _at(self, 2)

    @property
    def below(self) -> Level:
        """The coarser level."""
        return _at(self, 3)

    @property
    def norm_up(self) -> RowNorm:
        """Norm before `up`."""
        return _at(self, 4)

    @property
    def up(self) -> RowConv:
        """Transposed stride-2 convolution, c_{l+1} -> c_l."""
        return _at(self, 6)


class Level(nn.ModuleList):
    """One scale of the U-Net. Official nesting: blocks on even indices, parameterless modules between them."""

    def __init__(self, planes: Sequence[int], repeats: Sequence[int], depth: int = 0) -> None:
        """The first plane and repeat are this level's, the others those below."""
        width, count = planes[0], repeats[0]
        modules: list[nn.Module] = []
        for _ in range(count):
            modules += [Block(width, width), nn.Identity()]
        if len(planes) > 1:
            modules += [nn.ModuleList([nn.Identity(), Descent(planes, repeats, depth)]), nn.Identity()]
            for index in range(count):
                modules += [Block(2 * width if index == 0 else width, width), nn.Identity()]
        super().__init__(modules)
        self.depth = depth
        self.count = count

    @property
    def encoder(self) -> tuple[Block, ...]:
        """Blocks before the descent."""
        return tuple(_at(self, 2 * index) for index in range(self.count))

    @property
    def descent(self) -> Optional[Descent]:
        """The way down and back, None on the last level."""
        return _at(self, 2 * self.count, 1) if len(self) > 2 * self.count else None

    @property
    def decoder(self) -> tuple[Block, ...]:
        """Blocks after the concat, none on the last level."""
        return tuple(_at(self, 2 * (self.count + index)) for index in range(1, len(self) // 2 - self.count))

    def forward(self, x: Tensor, maps: Sequence[LevelMaps], probe: Optional[Probe] = None) -> Tensor:
        """Float [N, c_l] and the maps of this level and those below -> float [N, c_l]."""
        here = maps[0]
        for block in self.encoder:
            x = block(x, here.same)
        _tell(probe, f"enc{self.depth}", x)
        descent = self.descent
        if descent is None:
            return x
        y = descent.down(_norm_relu(descent.norm_down, x), here.down, here.up)
        _tell(probe, f"down{self.depth + 1}", y)
        y = descent.below(y, maps[1:], probe)
        y = descent.up(_norm_relu(descent.norm_up, y), here.up, here.down)
        _tell(probe, f"up{self.depth}", y)
        x = torch.cat([x, y], 1)
        for block in self.decoder:
            x = block(x, here.same)
        _tell(probe, f"dec{self.depth}", x)
        return x


class Backbone(nn.Module):
    """Stem, U-Net, last norm: rows [N, F] -> rows [N, c_0]."""

    def __init__(self, inputs: int, planes: Sequence[int], repeats: Sequence[int]) -> None:
        """Columns of the input rows; channels and blocks of every level, finest first."""
        super().__init__()
        self.net = nn.ModuleList([RowConv(inputs, planes[0]), Level(planes, repeats), RowNorm(planes[0])])

    @property
    def stem(self) -> RowConv:
        """First convolution."""
        return _at(self.net, 0)

    @property
    def root(self) -> Level:
        """Finest level."""
        return _at(self.net, 1)

    @property
    def norm(self) -> RowNorm:
        """Last norm."""
        return _at(self.net, 2)

    def forward(self, x: Tensor, maps: Sequence[LevelMaps], probe: Optional[Probe] = None) -> Tensor:
        """Float [N, F] and the maps of all levels -> float [N, c_0]."""
        x = self.stem(x, maps[0].same, flipped(maps[0].same))
        _tell(probe, "stem", x)
        x = _norm_relu(self.norm, self.root(x, maps, probe))
        _tell(probe, "final", x)
        return x
