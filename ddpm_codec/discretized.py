"""The discretized Gaussian decoder: Ho et al. 2020, Eq. 13, exactly.

The probability of pixel k is the mass that N(mean, std^2) puts on the bin of width 2/255
around x = k / 127.5 - 1; the first and the last bin reach to infinity. The logarithm of a
difference of two CDFs is taken on the tail where it does not cancel, in float64: it stays
accurate where the difference itself underflows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddpm_codec.gaussian import sum_dims
from ddpm_codec.units import HALF_RANGE_255

BIN_WIDTH = 1.0 / HALF_RANGE_255
"""Width of a pixel's bin on the [-1, 1] scale."""

LEAST_VARIANCE = (BIN_WIDTH / 16) ** 2
"""Of a decoder that was measured: a sixteenth of a bin."""

_ROUNDING_VARIANCE = BIN_WIDTH**2 / 12
_LOG_HALF = -math.log(2.0)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0 (Maechler 2012)."""
    return torch.where(x > _LOG_HALF, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def log_normal_interval(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) for lower < upper, float64, infinite ends allowed.

    By symmetry the interval is first moved to the lower tail, where log Phi is accurate.
    """
    mirror = lower + upper > 0
    a = torch.where(mirror, -upper, lower)
    b = torch.where(mirror, -lower, upper)
    log_b = torch.special.log_ndtr(b)
    return log_b + _log1mexp(torch.special.log_ndtr(a) - log_b)


def without_rounding(expected: Tensor) -> Tensor:
    """The variance to integrate over the bins where (x_0 - mean)^2 is `expected`: less that of a
    uniform rounding error, which integrating adds again (Sheppard)."""
    return (expected - _ROUNDING_VARIANCE).clamp_min(LEAST_VARIANCE)


Index = tuple[slice, ...]
Code = Callable[[Index, "DiscretizedGaussian"], Tensor]
"""Told where in (N,C,H,W) some pixels lie and what they are coded under, gives them, 0..255."""


class PixelDecoder(Protocol):
    """p(x_0 | ...), of pixels that may depend on those before them."""

    def visit(self, code: Code) -> None:
        """Let `code` take or give the pixels of one part after the other."""

    def log_pmf_nats(self, pixels: Tensor) -> Tensor:
        """Log probability of integer `pixels` 0..255 (N,C,H,W), each given those before."""
        ...

    def log_prob_nats(self, pixels: Tensor) -> Tensor:
        """(N,) log probability of images `pixels` (N,C,H,W), in nats."""
        ...


@dataclass(frozen=True)
class DiscretizedGaussian:
    """p(x_0 | ...) over pixels 0..255; `mean` (N,C,H,W) in [-1, 1] units, `std` broadcasts."""

    mean: Tensor
    std: Tensor

    def visit(self, code: Code) -> None:
        """Let `code` take or give all pixels at once."""
        code((slice(None),), self)

    def log_pmf_nats(self, pixels: Tensor) -> Tensor:
        """Log probability of integer `pixels` 0..255, broadcast against the mean; float64."""
        centre = pixels.to(torch.float64) / HALF_RANGE_255 - 1.0
        mean, std = self.mean.to(torch.float64), self.std.to(torch.float64)
        lower = (centre - BIN_WIDTH / 2 - mean) / std
        upper = (centre + BIN_WIDTH / 2 - mean) / std
        return log_normal_interval(
            lower.masked_fill(pixels == 0, -torch.inf),
            upper.masked_fill(pixels == 255, torch.inf),
        )

    def log_prob_nats(self, pixels: Tensor) -> Tensor:
        """(N,) log probability of images `pixels` (N,C,H,W), integers 0..255, in nats."""
        return sum_dims(self.log_pmf_nats(pixels))


_TANH_CUBIC = 0.044715
_TANH_EDGE, _TANH_LEAST = 0.999, 1e-12


def _tanh_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + _TANH_CUBIC * x**3)))


class TanhGaussian(DiscretizedGaussian):
    """Eq. 13 as the code of Ho et al. 2020 and of OpenAI has it, for comparison: the CDF
    1/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), its differences clamped at 1e-12, in
    float32, which values far above the mean feel."""

    def log_pmf_nats(self, pixels: Tensor) -> Tensor:
        """Their log probability of integer `pixels` 0..255; float32."""
        x = pixels.to(torch.float32) / HALF_RANGE_255 - 1.0
        centred, inverse = x - self.mean.float(), 1 / self.std.float()
        upper = _tanh_cdf(inverse * (centred + BIN_WIDTH / 2))
        lower = _tanh_cdf(inverse * (centred - BIN_WIDTH / 2))
        inside = (upper - lower).clamp_min(_TANH_LEAST).log()
        last = torch.where(x > _TANH_EDGE, (1 - lower).clamp_min(_TANH_LEAST).log(), inside)
        return torch.where(x < -_TANH_EDGE, upper.clamp_min(_TANH_LEAST).log(), last)
