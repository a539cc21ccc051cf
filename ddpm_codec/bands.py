"""Frequency bands: an orthonormal transform in which errors of x_0_hat are nearly independent.

Colour channels go through an orthonormal transform (luma, then two differences), each side through
DCT-IIs of 8; sides that are no multiple of 8 end in a shorter one. The coefficient of frequency k
of block b stands where the block's k-th sample stood. Being orthonormal, it leaves isotropic
Gaussians as they are.
"""

import math
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8


@cache
def dct_matrix(n: int) -> Tensor:
    """(n, n) float64, rows are frequencies: sqrt(2/n) cos(pi (2 j + 1) k / (2 n)), DC sqrt(1/n)."""
    k, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = math.sqrt(2 / n) * torch.cos(math.pi * (2 * j + 1) * k / (2 * n))
    matrix[0] = math.sqrt(1 / n)
    return matrix


@cache
def colour_matrix(channels: int) -> Tensor:
    """(C, C) float64, orthonormal: luma and two differences for C = 3, else the identity."""
    if channels != 3:
        return torch.eye(channels, dtype=torch.float64)
    rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def _last_axis(x: Tensor, inverse: bool) -> Tensor:
    """Blocks of 8 along the last axis, then what is left over."""
    whole = x.shape[-1] // BLOCK * BLOCK
    pieces = []
    for part, n in ((x[..., :whole], BLOCK), (x[..., whole:], x.shape[-1] - whole)):
        if part.shape[-1]:
            matrix = dct_matrix(n).to(x)
            blocks = part.reshape(*x.shape[:-1], -1, n)
            pieces.append((blocks @ (matrix if inverse else matrix.T)).reshape(part.shape))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


def _colour(x: Tensor, inverse: bool) -> Tensor:
    matrix = colour_matrix(x.shape[1]).to(x)
    return torch.einsum("dc,nchw->ndhw", matrix.T if inverse else matrix, x)


def to_bands(x: Tensor) -> Tensor:
    """(N,C,H,W) pixels to (N,C,H,W) coefficients."""
    y = _last_axis(_colour(x, inverse=False), inverse=False)
    return _last_axis(y.mT, inverse=False).mT.contiguous()


def from_bands(y: Tensor) -> Tensor:
    """(N,C,H,W) coefficients to (N,C,H,W) pixels: the inverse, and the transpose, of `to_bands`."""
    x = _last_axis(_last_axis(y.mT, inverse=True).mT, inverse=True)
    return _colour(x, inverse=True).contiguous()


def band_count(channels: int) -> int:
    """Bands of pictures of C channels: 64 a channel."""
    return channels * BLOCK**2


@lru_cache(maxsize=4)  # 24 bytes a pixel
def band_index(channels: int, height: int, width: int) -> Tensor:
    """(C,H,W) int64 the band of each coefficient, 0 .. 64 C - 1: 64 channel + 8 vertical +
    horizontal frequency. A frequency k of a shorter block of n counts as 8 k // n."""
    rows, columns = _frequencies(height), _frequencies(width)
    c = torch.arange(channels)[:, None, None]
    return c * BLOCK**2 + BLOCK * rows[:, None] + columns


def _frequencies(side: int) -> Tensor:
    at, left = torch.arange(side), side % BLOCK
    k = at % BLOCK
    return torch.where(at >= side - left, k * BLOCK // max(left, 1), k)


def block_means(x: Tensor) -> Tensor:
    """(N,C,H,W) to (N,1,H,W): the mean over the channels and the 8x8 block of each pixel."""
    height, width = x.shape[2:]
    means = F.avg_pool2d(x.mean(dim=1, keepdim=True), BLOCK, ceil_mode=True)
    spread = means.repeat_interleave(BLOCK, dim=2).repeat_interleave(BLOCK, dim=3)
    return spread[:, :, :height, :width]
