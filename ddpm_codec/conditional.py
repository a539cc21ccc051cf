"""The decoder of dependent pixels: x_0 in twelve parts, each under Eq. 13 given those before.

What x_0_hat leaves out at t = 1 is alike in neighbouring pixels and in the channels of one: the
noise hides what they share. Ho et al. (2020, Section 3.3) leave a conditional autoregressive
decoder to future work; this is a linear one. With z = (x_0 - x_0_hat) / sqrt(v), v the error that
the network expects, a pixel i of class k is

    p(x_i | x_before, x_t) = Eq. 13 of N(x_0_hat_i + sqrt(v_i) sum_j w_kj z_j,  c_k v_i)

over the 3x3 neighbours j in all channels that come before it. The parts are those of a lattice,
channel by channel: (even, even), (odd, odd), (even, odd), (odd, even) rows and columns. A part is
coded at once; pixels beyond the edge have z = 0. Classes are by v / (1 - alpha_bar_t), the share
of the noise that the network expects to leave. `PixelFit` measures w and c.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_codec.discretized import (
    LEAST_VARIANCE,
    Code,
    DiscretizedGaussian,
    Index,
    without_rounding,
)
from ddpm_codec.gaussian import sum_dims
from ddpm_codec.units import HALF_RANGE_255

PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))
WINDOW = 9
"""Pixels in the 3x3 of one channel."""
CLASS_EDGES = (0.45, 0.64, 0.78)
"""Between the classes: about the quartiles of v / (1 - alpha_bar_1) in photographs."""
CLASSES = len(CLASS_EDGES) + 1
MOST_Z = 3.0
"""z is cut off there: what the network did not expect tells little of its neighbours."""

_PRIOR_PIXELS = 32.0
"""Of independent z, which `PixelFit` counts besides those it sees."""

Floats32 = npt.NDArray[np.float32]


class Part(NamedTuple):
    """The pixels of one channel at one phase of the lattice."""

    channel: int
    phase: int

    @property
    def at(self) -> Index:
        """Where the part lies in (N,C,H,W)."""
        row, column = PHASES[self.phase]
        channel = slice(self.channel, self.channel + 1)
        return slice(None), channel, slice(row, None, 2), slice(column, None, 2)


def parts(channels: int) -> list[Part]:
    """In the order in which they are coded."""
    return [Part(channel, phase) for phase in range(len(PHASES)) for channel in range(channels)]


def weights_shape(channels: int) -> tuple[int, int, int]:
    """Of w for pictures of C channels: (4 C, CLASSES, 9 C)."""
    return len(PHASES) * channels, CLASSES, WINDOW * channels


@cache
def taps(part: Part, channels: int) -> tuple[int, ...]:
    """The neighbours of a part's pixels that come before them: 9 channel + 3 (dy + 1) + dx + 1."""
    before = parts(channels)[: parts(channels).index(part)]
    y, x = PHASES[part.phase]
    found = []
    for tap in range(WINDOW * channels):
        channel, dy, dx = tap // WINDOW, tap % WINDOW // 3 - 1, tap % 3 - 1
        if Part(channel, PHASES.index(((y + dy) % 2, (x + dx) % 2))) in before:
            found.append(tap)
    return tuple(found)


def neighbours(z: Tensor, part: Part, channels: int) -> Iterator[tuple[int, Tensor]]:
    """(tap, its z (N,1,h,w)) of a part's pixels; `z` (N,C,H+2,W+2) has an edge of zeros."""
    row, column = PHASES[part.phase]
    height, width = z.shape[2] - 2, z.shape[3] - 2
    for tap in taps(part, channels):
        channel, dy, dx = tap // WINDOW, tap % WINDOW // 3, tap % 3
        rows = slice(row + dy, height + dy, 2)
        columns = slice(column + dx, width + dx, 2)
        yield tap, z[:, channel : channel + 1, rows, columns]


def classes_of(variance: Tensor, noise: Tensor) -> Tensor:
    """The class of each pixel, from v (N,...) and 1 - alpha_bar_t, which broadcasts."""
    edges = torch.tensor(CLASS_EDGES, dtype=torch.float64, device=variance.device)
    return torch.bucketize((variance.double() / noise.double()).contiguous(), edges)


def left_out(pixels: Tensor, x_0_hat: Tensor, variance: Tensor) -> Tensor:
    """z of integer `pixels` 0..255, cut off, float64; all of one shape, x_0_hat and v as above."""
    x_0 = pixels.double() / HALF_RANGE_255 - 1.0
    return ((x_0 - x_0_hat.double()) / variance.sqrt()).clamp(-MOST_Z, MOST_Z)


def _floored(variance: Tensor) -> Tensor:
    """v in float64, never 0."""
    return variance.double().clamp_min(LEAST_VARIANCE)


@dataclass(frozen=True)
class ConditionalGaussian:
    """p_theta(x_0 | x_t) of dependent pixels.

    `x_0_hat` and `variance` (N,C,H,W), v as above, in [-1, 1] units; `noise` (N,1,1,1), the
    1 - alpha_bar_t of each image; `dependent` (N,1,1,1) bool: the pixels of the other images know
    of none, w = 0 and c = 1; `weights` (4 C, CLASSES, 9 C) and `spread` (4 C, CLASSES), the w and c
    of each part.
    """

    x_0_hat: Tensor
    variance: Tensor
    noise: Tensor
    dependent: Tensor
    weights: Floats32
    spread: Floats32

    def visit(self, code: Code) -> None:
        """Let `code` take or give the pixels (N,1,h,w), 0..255, of one part after the other."""
        images, channels, height, width = self.x_0_hat.shape
        z = self.x_0_hat.new_zeros(images, channels, height + 2, width + 2, dtype=torch.float64)
        inside = z[:, :, 1:-1, 1:-1]
        for number, part in enumerate(parts(channels)):
            mean, v = self.x_0_hat[part.at].double(), _floored(self.variance[part.at])
            if not mean.numel():
                continue
            kind = torch.where(self.dependent, classes_of(v, self.noise), CLASSES)
            weights, spread = self._tables(number)
            shift = torch.zeros_like(mean)
            for tap, values in neighbours(z, part, channels):
                shift += weights[:, tap][kind] * values
            std = without_rounding(spread[kind] * v).sqrt()
            gaussian = DiscretizedGaussian(mean + v.sqrt() * shift, std)
            inside[part.at] = left_out(code(part.at, gaussian), mean, v)

    def _tables(self, number: int) -> tuple[Tensor, Tensor]:
        """w (CLASSES + 1, 9 C) and c (CLASSES + 1,) of a part, in float64: the last class's pixels
        know of none."""
        weights, spread = self.weights[number], self.spread[number]
        padded = np.pad(weights, ((0, 1), (0, 0))), np.pad(spread, (0, 1), constant_values=1.0)
        w, c = (torch.from_numpy(x).double().to(self.x_0_hat.device) for x in padded)
        return w, c

    def log_pmf_nats(self, pixels: Tensor) -> Tensor:
        """Log probability of `pixels` 0..255 (N,C,H,W), each given those before; float64."""
        nats = torch.zeros_like(self.x_0_hat, dtype=torch.float64)

        def code(at: Index, gaussian: DiscretizedGaussian) -> Tensor:
            nats[at] = gaussian.log_pmf_nats(pixels[at])
            return pixels[at]

        self.visit(code)
        return nats

    def log_prob_nats(self, pixels: Tensor) -> Tensor:
        """(N,) log probability of images `pixels` (N,C,H,W), integers 0..255, in nats."""
        return sum_dims(self.log_pmf_nats(pixels))


class PixelFit:
    """Least squares for w and c, from as many pictures as are `add`ed: for each part and class the
    w of least E[(z_i - w z)^2] and the c that this is, as if 32 pixels more had independent z of
    variance 1."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        groups, classes, inputs = weights_shape(channels)
        self._moments = torch.zeros(groups, classes, inputs + 1, inputs + 1, dtype=torch.float64)
        self._counts = torch.zeros(groups, classes, dtype=torch.float64)

    def add(self, pixels: Tensor, x_0_hat: Tensor, variance: Tensor, noise: Tensor) -> None:
        """Integer `pixels`, x_0_hat, v (N,C,H,W) and 1 - alpha_bar_t (N,1,1,1)."""
        v = _floored(variance)
        z = left_out(pixels, x_0_hat, v)
        padded, kinds = F.pad(z, (1, 1, 1, 1)), classes_of(v, noise)
        for number, part in enumerate(parts(self.channels)):
            columns = [values for _, values in neighbours(padded, part, self.channels)]
            rows = torch.stack([*columns, z[part.at]], dim=-1).flatten(0, 3)
            kind = kinds[part.at].flatten()
            at = torch.tensor([*taps(part, self.channels), -1])
            for k in range(CLASSES):
                some = rows[kind == k]
                self._moments[number, k, at[:, None], at] += some.T @ some
                self._counts[number, k] += len(some)

    def tables(self) -> tuple[Floats32, Floats32]:
        """w (4 C, CLASSES, 9 C) and c (4 C, CLASSES)."""
        weights = torch.zeros(weights_shape(self.channels), dtype=torch.float64)
        spread = torch.ones(weights.shape[:2], dtype=torch.float64)
        for number, part in enumerate(parts(self.channels)):
            at = torch.tensor(taps(part, self.channels), dtype=torch.int64)
            for k in range(CLASSES):
                moments = self._moments[number, k]
                gram = moments[at[:, None], at] + _PRIOR_PIXELS * torch.eye(len(at))
                cross, own = moments[at, -1], moments[-1, -1] + _PRIOR_PIXELS
                w = torch.linalg.solve(gram, cross)
                weights[number, k, at] = w
                spread[number, k] = (own - w @ cross) / (self._counts[number, k] + _PRIOR_PIXELS)
        return weights.float().numpy(), spread.float().numpy()
