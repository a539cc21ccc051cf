"""Units: nats and bits, 8-bit pixels and [-1, 1], RMSE and PSNR.

The mathematics is in nats and on pixels scaled linearly to [-1, 1] (Ho et al. 2020,
Section 3.3); rates and files are in bits; distortions are on the 0..255 scale.
"""

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

NATS_PER_BIT = math.log(2.0)
HALF_RANGE_255 = 127.5
"""Half of the 8-bit range: a difference in [-1, 1] times this is one in 0..255."""

Real = TypeVar("Real", float, np.ndarray, Tensor)


def nats_to_bits(nats: Real) -> Real:
    """Nats to bits: divide by ln 2."""
    return nats / NATS_PER_BIT


def nats_to_bpd(nats: Real, dims: int) -> Real:
    """Nats per image to bits per dimension, `dims` = H * W * C."""
    return nats / (NATS_PER_BIT * dims)


def from_uint8(pixels: Tensor) -> Tensor:
    """Pixels 0..255, any shape, to float32 in [-1, 1]: x = pixel / 127.5 - 1."""
    return pixels.to(torch.float32) / HALF_RANGE_255 - 1.0


def to_uint8(x: Tensor) -> Tensor:
    """Values in [-1, 1], any shape, to the nearest pixel 0..255; others are clipped."""
    return ((x + 1.0) * HALF_RANGE_255).round().clamp(0, 255).to(torch.uint8)


def rmse_to_psnr_db(rmse_255: Real) -> Real:
    """PSNR in dB of a root mean squared error on the 0..255 scale: 20 log10(255 / rmse)."""
    if isinstance(rmse_255, Tensor):
        return 20.0 * torch.log10(255.0 / rmse_255)
    with np.errstate(divide="ignore"):
        return 20.0 * np.log10(np.divide(255.0, rmse_255))
