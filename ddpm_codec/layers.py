"""What a `UNet` is made of."""

import math
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_codec.exact import shifted_sum
from ddpm_codec.unet_config import GROUPS, UNetConfig

_GROUP_EPS = {"ho": 1e-6, "openai": 1e-5}

CACHE_CELLS = 4096
"""Positions in a strip of a large picture: their activations (128 channels) stay in the cache."""

_ALL = slice(None)


def unhalved(x: Tensor) -> Tensor:
    """`x` in float32, in float64 where it is: the inside of a network may be in bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Conv(nn.Conv2d):
    """nn.Conv2d, faster in float64."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float64 or self.groups not in (1, self.in_channels):
            return super().forward(x)
        return shifted_sum(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))


class PixelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of an (N,C,H,W) tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm(config: UNetConfig, channels: int) -> nn.Module:
    """The normalisation of this configuration."""
    if config.norm == "pixel":
        return PixelNorm(channels)
    return nn.GroupNorm(GROUPS, channels, eps=_GROUP_EPS[config.dialect])


Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def zeroed(layer: Layer) -> Layer:
    """`layer`, its weights 0: what it adds to starts as it is."""
    nn.init.zeros_(layer.weight)
    return layer


class ResBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; the time embedding is added in between, or scales and
    shifts what the second normalisation gives."""

    def __init__(self, config: UNetConfig, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = norm(config, c_in)
        self.conv1 = Conv(c_in, c_out, 3, padding=1)
        self.scale_shift = config.scale_shift
        self.time = nn.Linear(4 * config.channels, c_out * (2 if config.scale_shift else 1))
        self.norm2 = norm(config, c_out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zeroed(Conv(c_out, c_out, 3, padding=1))
        self.shortcut = Conv(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        embedded = self.time(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = embedded.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + embedded)
        h = self.conv2(self.dropout(F.silu(h)))
        return cast(Tensor, self.shortcut(x) + h)


class GatedBranch(nn.Module):
    """A normalisation, scaled and shifted by the time embedding; a 1x1 convolution to twice the
    channels and, if `spatial`, a depthwise 3x3 one; half of the channels times SiLU of the other
    half; a 1x1 convolution, 0 at first."""

    def __init__(self, config: UNetConfig, c_in: int, c_out: int, spatial: bool) -> None:
        super().__init__()
        self.norm = norm(config, c_in)
        self.time = zeroed(nn.Linear(config.embedding, 2 * c_in))
        self.expand = Conv(c_in, 2 * c_out, 1)
        depthwise = Conv(2 * c_out, 2 * c_out, 3, padding=1, groups=2 * c_out)
        self.spatial = depthwise if spatial else nn.Identity()
        self.contract = zeroed(Conv(c_out, c_out, 1))

    def forward(self, x: Tensor, embedding: Tensor, rows: slice = _ALL) -> Tensor:
        """x (N,c_in,H,W), embedding (N,E) to these `rows` of (N,c_out,H,W)."""
        scale, shift = self.time(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.expand(torch.addcmul(shift, self.norm(x), 1 + scale))
        a, b = self.spatial(h)[:, :, rows].chunk(2, dim=1)
        return cast(Tensor, self.contract(a * F.silu(b)))


class GatedBlock(nn.Module):
    """Two gated branches, the first of them spatial, one after the other added to what comes (after
    NAFNet, Chen et al. 2022): a third of the operations of a `ResBlock`. On a CPU a large picture
    goes through it in strips whose activations stay in the cache."""

    def __init__(self, config: UNetConfig, c_in: int, c_out: int) -> None:
        super().__init__()
        self.first = GatedBranch(config, c_in, c_out, spatial=True)
        self.second = GatedBranch(config, c_out, c_out, spatial=False)
        self.local = config.norm == "pixel"
        self.shortcut = Conv(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (N,c_in,H,W), embedding (N,E) to (N,c_out,H,W)."""
        count = max(1, CACHE_CELLS // x.shape[3])
        if not self.local or len(x) > 1 or x.shape[2] <= count or x.device.type != "cpu":
            return self._rows(x, embedding, _ALL)
        strips = []
        for y in range(0, x.shape[2], count):
            top = max(0, y - 1)  # what the depthwise convolution sees above and below
            rows = slice(y - top, y - top + count)
            strips.append(self._rows(x[:, :, top : y + count + 1], embedding, rows))
        return torch.cat(strips, dim=2)

    def _rows(self, x: Tensor, embedding: Tensor, rows: slice) -> Tensor:
        """These rows of what the block makes of x, (N,c_out,rows,W)."""
        x = self.shortcut(x[:, :, rows]) + self.first(x, embedding, rows)
        return cast(Tensor, x + self.second(x, embedding))


class Attention(nn.Module):
    """Self-attention over the pixels."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = norm(config, channels)
        self.q, self.k, self.v = (Conv(channels, channels, 1) for _ in range(3))
        self.out = zeroed(Conv(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.norm(x)
        by_head = (len(x), self.heads, x.shape[1] // self.heads, -1)
        q, k, v = (f(h).reshape(by_head).transpose(2, 3) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return cast(Tensor, x + self.out(h))


class Downsample(Conv):
    """Halve the sides by a 3x3 convolution of stride 2, padded below and to the right (as Ho et al.
    do) or on all sides (as OpenAI does)."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)
        self._padding = (0, 1, 0, 1) if config.dialect == "ho" else (1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self._padding))


class Upsample(Conv):
    """Double the sides by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """A residual block and, at some levels, attention behind it."""

    def __init__(self, config: UNetConfig, c_in: int, c_out: int, attention: bool) -> None:
        super().__init__()
        kind = ResBlock if config.block == "residual" else GatedBlock
        self.block = kind(config, c_in, c_out)
        self.attention = Attention(config, c_out) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.block(x, embedding)
        return x if self.attention is None else self.attention(x, embedding)


def sinusoidal(level: Tensor, config: UNetConfig) -> Tensor:
    """(N,) noise levels to (N, channels): the Transformer's position embedding, in one of the two
    forms that are about. Angles of hundreds show every rounding of the rates: the order of the
    operations is that of either's code."""
    half = config.channels // 2
    number = torch.arange(half, device=level.device).to(level.dtype)
    if config.dialect == "ho":
        angle = level[:, None] * torch.exp(number * (-math.log(10000.0) / (half - 1)))
        return torch.cat([angle.sin(), angle.cos()], dim=1)
    angle = level[:, None] * torch.exp(number * -math.log(10000.0) / half)
    return torch.cat([angle.cos(), angle.sin()], dim=1)
