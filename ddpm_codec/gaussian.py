"""Diagonal Gaussians over images: density, samples and relative entropy, in nats."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG_2PI = math.log(2.0 * math.pi)


def sum_dims(x: Tensor) -> Tensor:
    """(N, ...) to (N,), summed over the dimensions of each image in float64."""
    return x.flatten(1).sum(dim=1, dtype=torch.float64)


def excess_kl_nats(excess: Tensor, shift2: Tensor) -> Tensor:
    """KL in nats of each dimension between N(m, v) and N(m', v (1 + excess)), broadcast.

    `shift2` = (m - m')^2 / v: 1/2 (log(1 + e) - e / (1 + e) + shift2 / (1 + e)). By log1p, for
    an excess that is often tiny.
    """
    return 0.5 * (torch.log1p(excess) + (shift2 - excess) / (1 + excess))


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(variance)); `mean` (N,C,H,W), `variance` broadcasts against it."""

    mean: Tensor
    variance: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """(N,C,H,W) one draw."""
        noise = torch.randn(
            self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        return self.mean + self.variance.sqrt() * noise

    def log_prob_nats(self, x: Tensor) -> Tensor:
        """(N,) log density of x (N,C,H,W), in nats."""
        z2 = (x - self.mean) ** 2 / self.variance
        return sum_dims(-0.5 * (z2 + self.variance.log() + _LOG_2PI))

    def kl_nats(self, p: "DiagonalGaussian") -> Tensor:
        """(N,) KL(self || p) in nats:

        1/2 sum (v_q / v_p - 1 - log(v_q / v_p) + (mean_q - mean_p)^2 / v_p).
        """
        ratio = self.variance / p.variance
        shift2 = (self.mean - p.mean) ** 2 / p.variance
        return sum_dims(0.5 * (ratio - 1.0 - ratio.log() + shift2))
