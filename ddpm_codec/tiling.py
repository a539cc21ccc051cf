"""A local network on pictures of any size: tile by tile, each with a halo of what it can see.

The output at a pixel depends on inputs within `receptive_radius` only, so tiles that overlap by
that much give what the whole picture gives, to rounding, in memory that the tile bounds.
"""

import itertools

import torch
from torch import Tensor

from ddpm_codec.unet import Prediction, UNet
from ddpm_codec.unet_config import UNetConfig

TILE = 512
"""Largest side of a tile, without its halo, in pixels."""


def receptive_radius(config: UNetConfig) -> int | None:
    """Pixels, a multiple of the stride: no output depends on an input further away along either
    side. None for a network that sees the whole picture (attention, group normalisation)."""
    if config.attention or config.norm == "group":
        return None
    cell, radius = config.patch, config.patch
    radius += 2 * cell  # the stem and the head
    for level in range(len(config.multipliers)):
        last = level == len(config.multipliers) - 1
        blocks = 2 * config.blocks + 1 + (2 if last else 0)
        radius += (2 if config.block == "residual" else 1) * blocks * cell
        if not last:
            radius += 2 * cell + 2 * cell  # down: one cell more to one side; up: a coarse cell
            cell *= 2
    return -(-(radius + cell) // config.stride) * config.stride


def cuts(side: int, stride: int, tile: int) -> list[int]:
    """Where tiles begin and end along a side: even, on multiples of `stride`, none above `tile`."""
    count = -(-side // tile)
    inner = [side * i // count // stride * stride for i in range(1, count)]
    return [0, *inner, side]


class Tiled:
    """A `UNet` as a denoiser for pictures of any size. `tile`: side above which it is cut up;
    `bfloat16`: the layers inside run in it, by autocast."""

    def __init__(self, network: UNet, tile: int = TILE, bfloat16: bool = False) -> None:
        self.network, self.tile, self.bfloat16 = network, tile, bfloat16
        self.radius = receptive_radius(network.config)

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        """x_t (N,C,H,W), t (N,) to a `Prediction`, on the device of x_t wherever the network is."""
        device = self.network.noise_level.device
        if device != x_t.device:
            there, log_variance = self(x_t.to(device), t.to(device))
            return Prediction(
                there.to(x_t.device), None if log_variance is None else log_variance.to(x_t.device)
            )
        height, width = x_t.shape[2:]
        if self.radius is None or max(height, width) <= self.tile:
            return self._call(x_t, t)
        out = torch.empty_like(x_t)
        log_variance = torch.empty_like(x_t) if self.network.config.log_variance else None
        stride = self.network.config.stride
        rows, columns = cuts(height, stride, self.tile), cuts(width, stride, self.tile)
        for y0, y1 in itertools.pairwise(rows):
            for x0, x1 in itertools.pairwise(columns):
                top, left = max(0, y0 - self.radius), max(0, x0 - self.radius)
                part = x_t[:, :, top : y1 + self.radius, left : x1 + self.radius]
                prediction, spread = self._call(part, t)
                inside = (..., slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
                out[..., y0:y1, x0:x1] = prediction[inside]
                if log_variance is not None and spread is not None:
                    log_variance[..., y0:y1, x0:x1] = spread[inside]
        return Prediction(out, log_variance)

    def _call(self, x_t: Tensor, t: Tensor) -> Prediction:
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.bfloat16):
            return Prediction(*self.network(x_t, t))
