"""The U-Net of Ho et al. 2020, Appendix B, and a small local relative of it.

One class serves both: `paper` (group normalisation, self-attention at 16x16, 35.7 M
parameters) and `small`, which works behind a pixel-unshuffle stem, normalises over the
channels of each pixel and has no attention, so that a pixel of its output depends on a
bounded neighbourhood of its input whatever the size of the picture.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_codec.errors import ConfigError

_GROUPS = 32
_GROUP_EPS = 1e-6


class Prediction(NamedTuple):
    """What a denoiser says: `prediction` (N,C,H,W), in the model's parameterization, and
    `log_variance` (N,C,H,W), the log of the expected squared error of `prediction`."""

    prediction: Tensor
    log_variance: Tensor | None


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a `UNet`.

    `patch`: side of the pixel-unshuffle stem (1: none). `fourier`: the octaves n of the input
    features sin(2^n pi x), cos(2^n pi x) (Kingma et al. 2021, Appendix C). `attention`: the
    levels of `multipliers` with self-attention; where there are any, the middle has it too.
    `norm`: "group", or "pixel" for layer normalisation over the channels of each pixel.
    """

    image_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1,)
    norm: Literal["group", "pixel"] = "group"
    dropout: float = 0.1
    patch: int = 1
    fourier: tuple[int, ...] = ()
    log_variance: bool = False

    def check(self) -> None:
        """Raise ConfigError for a shape that can't be built or is absurdly large."""
        bounded = {
            "image_channels": (self.image_channels, 1, 16),
            "channels": (self.channels, 4, 1024),
            "blocks": (self.blocks, 1, 16),
            "levels": (len(self.multipliers), 1, 8),
            "patch": (self.patch, 1, 8),
            "octaves": (len(self.fourier), 0, 8),
        }
        for name, (value, least, most) in bounded.items():
            if not least <= value <= most:
                raise ConfigError(f"a U-Net with {name}={value}: {least}..{most} expected")
        if not all(1 <= m <= 16 for m in self.multipliers) or not 0 <= self.dropout < 1:
            raise ConfigError("a U-Net with multipliers outside 1..16 or dropout outside [0, 1)")
        if not all(0 <= level < len(self.multipliers) for level in self.attention):
            raise ConfigError("a U-Net with attention at a level that it does not have")
        if self.norm == "group" and self.channels % _GROUPS:
            raise ConfigError(f"group normalisation needs channels in multiples of {_GROUPS}")

    @property
    def stride(self) -> int:
        """Sides of the input are filled up to multiples of this."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


PRESETS = {
    "paper": UNetConfig(),
    "small": UNetConfig(
        channels=128,
        multipliers=(1,),
        attention=(),
        norm="pixel",
        dropout=0.0,
        patch=2,
        log_variance=True,
    ),
}


class PixelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of an (N,C,H,W) tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm(config: UNetConfig, channels: int) -> nn.Module:
    if config.norm == "pixel":
        return PixelNorm(channels)
    return nn.GroupNorm(_GROUPS, channels, eps=_GROUP_EPS)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    return layer


class ResBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; the time embedding is added in between."""

    def __init__(self, config: UNetConfig, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(config, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(4 * config.channels, c_out)
        self.norm2 = _norm(config, c_out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = _zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return cast(Tensor, self.shortcut(x) + h)


class Attention(nn.Module):
    """Single-head self-attention over the pixels."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.norm = _norm(config, channels)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return cast(Tensor, x + self.out(h))


class Downsample(nn.Conv2d):
    """Halve the sides by a 3x3 convolution of stride 2, padded below and to the right."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Double the sides by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """A residual block and, at some levels, attention behind it."""

    def __init__(self, config: UNetConfig, c_in: int, c_out: int, attention: bool) -> None:
        super().__init__()
        self.block = ResBlock(config, c_in, c_out)
        self.attention = Attention(config, c_out) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.block(x, embedding)
        return x if self.attention is None else self.attention(x, embedding)


def sinusoidal(level: Tensor, channels: int) -> Tensor:
    """(N,) noise levels to (N, channels): the Transformer's position embedding."""
    half = channels // 2
    rate = torch.exp(torch.arange(half, device=level.device) * (-math.log(10000.0) / (half - 1)))
    angle = level[:, None].float() * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class UNet(nn.Module):
    """x_t (N,C,H,W) float in model units and t (N,) int64 in 1..T to a `Prediction`.

    `noise_level` (T+1,) float is what the time embedding sees of t: t itself in the paper.
    Sides that are no multiples of `config.stride` are filled up with copies of the edge. The first
    and the last convolution run in float32 also under autocast: at t = 1 the noise is smaller than
    bfloat16's step at 1.
    """

    noise_level: Tensor

    def __init__(self, config: UNetConfig, noise_level: Tensor) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.register_buffer("noise_level", noise_level.float(), persistent=False)
        c, patch = config.channels, config.patch
        self.time1, self.time2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, 4 * c)
        stem_channels = config.image_channels * patch**2 * (1 + 2 * len(config.fourier))
        self.stem = nn.Conv2d(stem_channels, c, 3, padding=1)

        width, skips = c, [c]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                self.down.append(Stage(config, width, c * multiplier, level in config.attention))
                width = c * multiplier
                skips.append(width)
            if level < len(config.multipliers) - 1:
                self.down.append(Downsample(width))
                skips.append(width)

        self.middle = nn.ModuleList(
            [
                Stage(config, width, width, bool(config.attention)),
                Stage(config, width, width, False),
            ]
        )

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for _ in range(config.blocks + 1):
                attention = level in config.attention
                self.up.append(Stage(config, width + skips.pop(), c * multiplier, attention))
                width = c * multiplier
            if level > 0:
                self.up.append(Upsample(width))

        self.norm = _norm(config, width)
        outputs = config.image_channels * (2 if config.log_variance else 1)
        self.head = _zeroed(nn.Conv2d(width, outputs * patch**2, 3, padding=1))

    def _embed(self, t: Tensor) -> Tensor:
        level = sinusoidal(self.noise_level[t], self.config.channels)
        return F.silu(self.time2(F.silu(self.time1(level))))

    def _features(self, x_t: Tensor) -> Tensor:
        waves = [f(x_t * (2.0**n * math.pi)) for n in self.config.fourier for f in _WAVES]
        x = torch.cat([x_t, *waves], dim=1)
        return F.pixel_unshuffle(x, self.config.patch).contiguous(memory_format=torch.channels_last)

    def forward(self, x_t: Tensor, t: Tensor) -> Prediction:
        height, width = x_t.shape[2:]
        below, right = -height % self.config.stride, -width % self.config.stride
        if not (below or right):
            return self._predict(x_t, t)
        filled = F.pad(x_t, (0, right, 0, below), mode="replicate")
        prediction, log_variance = self._predict(filled, t)
        inside = (..., slice(height), slice(width))
        return Prediction(
            prediction[inside], None if log_variance is None else log_variance[inside]
        )

    def _predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        embedding = self._embed(t)
        with torch.autocast(x_t.device.type, enabled=False):
            h = self.stem(self._features(x_t.float()))
        if torch.is_autocast_enabled(x_t.device.type):
            h = h.to(torch.get_autocast_dtype(x_t.device.type))
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, Stage) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for layer in self.up:
            if isinstance(layer, Stage):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = layer(h)
        with torch.autocast(x_t.device.type, enabled=False):
            h = self.head(F.silu(self.norm(h.float())))
        h = F.pixel_shuffle(h, self.config.patch)
        if not self.config.log_variance:
            return Prediction(h, None)
        return Prediction(*h.chunk(2, dim=1))


_WAVES = (torch.sin, torch.cos)


def parameter_count(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters())
