"""The training objectives: what of the bound a batch measures.

Every objective is the squared error of eps, unweighted, under its own distribution of t:

    simple   t uniform in 1..T (Ho et al. 2020, Eq. 14)
    vlb      log SNR uniform: L_{t-1} = 1/2 (SNR_{t-1} / SNR_t - 1) E|eps - eps_hat|^2, so that
             the bound is the plain average over log SNR (Kingma et al. 2021, Section 5)
    hybrid   the even mixture of both

For `vlb`, t = 1 stands for L_0, which falls with the logarithm of its error.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_codec.checkpoint import ModelConfig
from ddpm_codec.diffusion import broadcast
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

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps (count,) int64, stratified over the batch, and w (count,) float32."""
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        u = (u + torch.arange(count)) / count
        index = torch.searchsorted(self._cumulative, u).clamp_max(len(self._weight) - 1)
        return index + 1, self._weight[index]


def _target_distribution(schedule: Schedule, objective: Objective) -> Array:
    uniform = np.full(schedule.T, 1 / schedule.T)
    log_snr = np.concatenate([[_DECODER_WEIGHT], -np.diff(schedule.log_snr[1:])])
    log_snr /= log_snr.sum()
    if objective == "simple":
        return uniform
    return log_snr if objective == "vlb" else (log_snr + uniform) / 2


class TrainingLoss:
    """The training loss of a model's network under one objective.

    `log_variance_weight` is that of the variance head's Gaussian likelihood; the network runs
    under bfloat16 autocast if `bfloat16`.
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
        self.log_variance_weight, self.bfloat16 = log_variance_weight, bfloat16

    def __call__(self, network: nn.Module, x_0: Tensor, generator: torch.Generator) -> Tensor:
        """Mean over x_0 (N,C,H,W) of |eps - eps_hat|^2 / D, plus the variance head's likelihood.

        With x_0_hat = a x_t + b f, the error of eps is sqrt(SNR_t) b times the error of f.
        """
        t, weight = self.sampler.draw(len(x_0), generator)
        t, weight = t.to(x_0.device), weight.to(x_0.device)
        eps = torch.randn(x_0.shape, generator=generator).to(x_0.device)
        alpha = broadcast(np.sqrt(self.schedule.alpha_bar), t, x_0)
        x_t = alpha * x_0 + broadcast(np.sqrt(self.schedule.variance), t, x_0) * eps
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=self.bfloat16):
            f, log_variance = network(x_t, t)
        b = broadcast(self.b, t, x_0)
        error2 = (f - (x_0 - broadcast(self.a, t, x_0) * x_t) / b) ** 2
        eps_scale = (broadcast(self.schedule.snr, t, x_0) * b**2).flatten()
        loss = (weight * eps_scale * error2.mean(dim=(1, 2, 3))).mean()
        if log_variance is not None:
            nll = error2.detach() * torch.exp(-log_variance) + log_variance
            loss = loss + self.log_variance_weight * 0.5 * nll.mean()
        return loss
