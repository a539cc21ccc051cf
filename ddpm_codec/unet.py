"""The U-Net of Ho et al. 2020, Appendix B, and a small local relative of it.

One class serves both: `paper` (group normalisation, self-attention at 16x16, 35.7 M
parameters) and `small`, which works behind a pixel-unshuffle stem, normalises over the
channels of each pixel and has no attention, so that a pixel of its output depends on a
bounded neighbourhood of its input whatever the size of the picture.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_codec.layers import Conv, Downsample, Stage, Upsample, norm, sinusoidal, unhalved, zeroed
from ddpm_codec.unet_config import UNetConfig


class Prediction(NamedTuple):
    """What a denoiser says: `prediction` (N,C,H,W), in the model's parameterization, and
    `log_variance` (N,C,H,W), the log of the expected squared error of `prediction`."""

    prediction: Tensor
    log_variance: Tensor | None


class Upward(nn.Module):
    """The half of a U-Net from its lowest level up: the middle, the way up and the head."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        skips, c = _skip_widths(config), config.channels
        width = skips[-1]
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
        self.norm = norm(config, width)
        outputs = config.image_channels * (2 if config.log_variance else 1)
        self.head = zeroed(Conv(width, outputs * config.patch**2, 3, padding=1))

    def rise(self, skips: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """What the way down left, each (N,width,h,w), the lowest last, and the embedding (N,E) of
        t, to what the head gives, (N, outputs patch^2, H / patch, W / patch)."""
        h, below = skips[-1], list(skips)
        for layer in self.middle:
            h = layer(h, embedding)
        for layer in self.up:
            if isinstance(layer, Stage):
                h = layer(torch.cat([h, below.pop()], dim=1), embedding)
            else:
                h = layer(h)
        with torch.autocast(h.device.type, enabled=False):
            return cast(Tensor, self.head(F.silu(self.norm(unhalved(h)))))


class UNet(Upward):
    """x_t (N,C,H,W) float in model units and t (N,) int64 in 1..T to a `Prediction`.

    `noise_level` (T+1,) float is what the time embedding sees of t: t itself in the paper.
    Sides that are no multiples of `config.stride` are filled up with copies of the edge. The first
    and the last convolution run in float32 also under autocast: at t = 1 the noise is smaller than
    bfloat16's step at 1. With `config.experts`, `others` are the halves of the later timesteps.
    """

    noise_level: Tensor

    def __init__(self, config: UNetConfig, noise_level: Tensor) -> None:
        config.check()
        super().__init__(config)
        self.config = config
        self.register_buffer("noise_level", noise_level.float(), persistent=False)
        c, patch = config.channels, config.patch
        self.time1, self.time2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, config.embedding)
        stem_channels = config.image_channels * patch**2 * (1 + 2 * len(config.fourier))
        self.stem = Conv(stem_channels, c, 3, padding=1)
        width = c
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                self.down.append(Stage(config, width, c * multiplier, level in config.attention))
                width = c * multiplier
            if level < len(config.multipliers) - 1:
                self.down.append(Downsample(config, width))
        self.others = nn.ModuleList(Upward(config) for _ in config.experts)

    def _embed(self, t: Tensor) -> Tensor:
        level = sinusoidal(self.noise_level[t], self.config)
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
        if not self.others:
            return self._split(self.rise(*self._descend(x_t, t)))
        order = torch.argsort(t, stable=True)  # an expert's images lie together
        expert = torch.bucketize(t[order], t.new_tensor(self.config.experts))
        counts = torch.bincount(expert, minlength=1 + len(self.others)).tolist()
        skips, embedding = self._descend(x_t[order], t[order])
        halves, first = [], 0
        for count, half in zip(counts, (self, *self.others), strict=True):
            if count:
                part = slice(first, first + count)
                halves.append(half.rise([skip[part] for skip in skips], embedding[part]))
            first += count
        return self._split(torch.cat(halves)[torch.argsort(order)])

    def _descend(self, x_t: Tensor, t: Tensor) -> tuple[list[Tensor], Tensor]:
        """The stem's output and that of every layer on the way down, and the embedding of t."""
        embedding = self._embed(t)
        with torch.autocast(x_t.device.type, enabled=False):
            h = self.stem(self._features(unhalved(x_t)))
        if torch.is_autocast_enabled(x_t.device.type):
            h = h.to(torch.get_autocast_dtype(x_t.device.type))
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, Stage) else layer(h)
            skips.append(h)
        return skips, embedding

    def _split(self, h: Tensor) -> Prediction:
        h = F.pixel_shuffle(h, self.config.patch)
        if not self.config.log_variance:
            return Prediction(h, None)
        return Prediction(*h.chunk(2, dim=1))


def _skip_widths(config: UNetConfig) -> list[int]:
    """Channels of what the way up takes from the stem and from every layer on the way down."""
    widths = [config.channels]
    for level, multiplier in enumerate(config.multipliers):
        down = level < len(config.multipliers) - 1
        widths += [config.channels * multiplier] * (config.blocks + down)
    return widths


_WAVES = (torch.sin, torch.cos)
_UPPER = ("middle.", "up.", "norm.", "head.")


def for_experts(weights: Mapping[str, Tensor], others: int) -> dict[str, Tensor]:
    """The weights of a network without experts for one of 1 + `others`: alike in all of them."""
    upper = {k: v for k, v in weights.items() if k.startswith(_UPPER)}
    copies = {f"others.{i}.{k}": v for i in range(others) for k, v in upper.items()}
    return dict(weights) | copies


def parameter_count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())
