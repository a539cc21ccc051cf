"""Eq. 17 of the paper by brute force: one walk of the forward chain, log densities summed."""

import math

import torch
from torch import Tensor

from ddpm_codec.bands import to_bands
from ddpm_codec.diffusion import DiffusionModel
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.units import from_uint8


def log_normal(x: Tensor, mean: Tensor, variance: float) -> Tensor:
    z2 = (x - mean) ** 2 / variance
    return (-0.5 * (z2 + math.log(2 * math.pi * variance))).double().flatten(1).sum(1)


def monte_carlo_nelbo(model: DiffusionModel, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) -log p(x_T) - sum_t log p(x_{t-1} | x_t) / q(x_t | x_{t-1}) on one path per image."""
    x = from_uint8(pixels)
    path, nelbo = [x], torch.zeros(len(x), dtype=torch.float64)
    for beta in model.schedule.beta[1:]:
        mean = math.sqrt(1 - beta) * path[-1]
        path.append(mean + math.sqrt(beta) * torch.randn(x.shape, generator=generator))
        nelbo += log_normal(path[-1], mean, float(beta))
    nelbo -= log_normal(path[-1], torch.zeros_like(x), 1.0)
    for t in range(model.schedule.T, 0, -1):
        t_ = torch.full((len(x),), t)
        step = ReverseStep(model, t_, path[t], model.estimate(path[t], t_))
        if t > 1:
            nelbo -= step.p(t_ - 1).log_prob_nats(to_bands(path[t - 1]))
        else:
            nelbo -= step.decoder().log_prob_nats(pixels)
    return nelbo
