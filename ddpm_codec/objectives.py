"""The training objectives: what of the bound a batch measures.

Every objective is the squared error of eps, unweighted, under its own distribution of t:

    simple   t uniform in 1..T (Ho et al. 2020, Eq. 14)
    vlb      log SNR uniform: L_{t-1} = 1/2 (SNR_{t-1} / SNR_t - 1) E|eps - eps_hat|^2, so that
             the bound is the plain average over log SNR (Kingma et al. 2021, Section 5)
    hybrid   the even mixture of both

For `vlb`, t = 1 stands for L_0, which falls with the logarithm of its error.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_codec.checkpoint import ModelConfig
from ddpm_codec.diffusion import broadcast
from ddpm_codec.discretized import BIN_WIDTH
from ddpm_codec.gaussian import excess_kl_nats
from ddpm_codec.schedule import Array, Schedule

Objective = Literal["vlb", "simple", "hybrid"]

_DECODER_WEIGHT = 1.5
"""What t = 1 counts in units of log SNR: d L_0 / d mse = 1 / (2 mse), mse about 2/3 there."""

_UNIFORM_SHARE = 0.15


class TimestepSampler:
    """Draws t with importance weights w, E[w f(t)] = the objective's average of f.

    Proposals follow the objective's distribution times (share + (1 - share) alpha_bar): at high
    noise the error of eps is small for every model, and drawing less of it there lowers the
    variance of the gradient.
    """

    def __init__(self, schedule: Schedule, objective: Objective) -> None:
        target = _target_distribution(schedule, objective)
        proposal = target * (_UNIFORM_SHARE + (1 - _UNIFORM_SHARE) * schedule.alpha_bar[1:])
        proposal /= proposal.sum()
        self._cumulative = torch.from_numpy(np.cumsum(proposal))
        self._weight = torch.from_numpy(target / proposal).float()
        self._chance = torch.from_numpy(proposal).float()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Timesteps (count,) int64, stratified over the batch, and, (count,) float32, w and the
        probability of each t."""
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        u = (u + torch.arange(count)) / count
        index = torch.searchsorted(self._cumulative, u).clamp_max(len(self._weight) - 1)
        return index + 1, self._weight[index], self._chance[index]


def _target_distribution(schedule: Schedule, objective: Objective) -> Array:
    uniform = np.full(schedule.T, 1 / schedule.T)
    log_snr = np.concatenate([[_DECODER_WEIGHT], -np.diff(schedule.log_snr[1:])])
    log_snr /= log_snr.sum()
    if objective == "simple":
        return uniform
    return log_snr if objective == "vlb" else (log_snr + uniform) / 2


@dataclass(frozen=True)
class NoisyBatch:
    """What one training step sees: x_0 (N,C,H,W), eps of its shape, t (N,), its weight (N,) and
    the chance (N,) with which it was drawn."""

    x_0: Tensor
    eps: Tensor
    t: Tensor
    weight: Tensor
    chance: Tensor

    def part(self, images: slice, device: torch.device) -> "NoisyBatch":
        """Some of the images, on `device`."""
        return NoisyBatch(*(getattr(self, f.name)[images].to(device) for f in fields(self)))


class TrainingLoss:
    """The training loss of a model's network under one objective.

    `log_variance_weight` is that of the variance head's own loss; the network runs under bfloat16
    autocast if `bfloat16`.
    """

    def __init__(
        self,
        model: ModelConfig,
        objective: Objective,
        log_variance_weight: float,
        bfloat16: bool = False,
    ) -> None:
        self.schedule = Schedule(model.schedule)
        self.sampler = TimestepSampler(self.schedule, objective)
        self.a, self.b = self.schedule.x_0_coefficients(model.parameterization)
        self.head = model.variance_head
        self.log_variance_weight, self.bfloat16 = log_variance_weight, bfloat16

    def draw(self, x_0: Tensor, generator: torch.Generator) -> NoisyBatch:
        """Timesteps and noise for x_0 (N,C,H,W), on the CPU."""
        drawn = self.sampler.draw(len(x_0), generator)
        return NoisyBatch(x_0, torch.randn(x_0.shape, generator=generator), *drawn)

    def __call__(self, network: nn.Module, batch: NoisyBatch) -> Tensor:
        """Mean over the batch of |eps - eps_hat|^2 / D, plus the loss of the variance head.

        With x_0_hat = a x_t + b f, the error of eps is sqrt(SNR_t) b times the error of f.
        """
        x_0, t = batch.x_0, batch.t
        alpha = broadcast(np.sqrt(self.schedule.alpha_bar), t, x_0)
        x_t = alpha * x_0 + broadcast(np.sqrt(self.schedule.variance), t, x_0) * batch.eps
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=self.bfloat16):
            f, second = network(x_t, t)
        b = broadcast(self.b, t, x_0)
        error2 = (f - (x_0 - broadcast(self.a, t, x_0) * x_t) / b) ** 2
        eps_scale = (broadcast(self.schedule.snr, t, x_0) * b**2).flatten()
        loss = (batch.weight * eps_scale * error2.mean(dim=(1, 2, 3))).mean()
        if second is None:
            return loss
        if self.head == "error":
            nats = 0.5 * (error2.detach() * torch.exp(-second) + second).mean()
        else:
            nats = self._range_nats(batch, b**2 * error2.detach(), (second + 1) / 2)
        return loss + self.log_variance_weight * nats

    def _range_nats(self, batch: NoisyBatch, x_0_error2: Tensor, fraction: Tensor) -> Tensor:
        """The bound per dimension, from one term a picture over its chance, its mean held fixed
        (L_vlb of Nichol & Dhariwal 2021): KL, or for t = 1 a Gaussian's density with the variance
        of a rounding error added, which follows the discretized decoder's closely."""
        t, variance, snr = batch.t, self.schedule.variance, self.schedule.snr
        s = t.clamp_min(2) - 1
        wider = np.log(variance[2:] / variance[1:-1])
        every = broadcast(np.concatenate([[0, 0], wider]), t, fraction)
        gain = broadcast(snr, s, fraction) - broadcast(snr, t, fraction)
        kl = excess_kl_nats(torch.expm1(fraction * every), gain * x_0_error2)
        least = float(self.schedule.posterior(2, 1).variance)
        spread = least * (variance[1] / least) ** fraction + BIN_WIDTH**2 / 12
        density = 0.5 * (x_0_error2 / spread + (2 * math.pi * spread / BIN_WIDTH**2).log())
        nats = torch.where((t == 1).view(-1, 1, 1, 1), density, kl)
        return (nats.mean(dim=(1, 2, 3)) / batch.chance).mean()
