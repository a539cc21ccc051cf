"""Noise schedules: the forward process q and its posteriors, as float64 constants.

Arrays run over t = 0..T with `alpha_bar[0] == 1` (x_0 itself), so that
q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I) (Ho et al. 2020, Eq. 4)
holds for every index. Differences such as 1 - alpha_bar are kept as `expm1` of sums of
logarithms: exact to the last digits where alpha_bar is close to 1.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ddpm_codec.errors import ConfigError

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Kind = Literal["linear", "quadratic", "constant", "cosine"]
Parameterization = Literal["eps", "x_0", "mu_tilde", "v"]

_LEAST_ALPHA_BAR = 1e-30
_COSINE_OFFSET = 0.008
_COSINE_BETA_MAX = 0.999


@dataclass(frozen=True)
class ScheduleConfig:
    """beta_1 .. beta_T.

    linear, quadratic (linear in sqrt(beta)) and constant (beta_T throughout) as in Ho et
    al. 2020, Appendix B; cosine as in Nichol & Dhariwal 2021, Eq. 17, which has no
    endpoints to choose. The betas are not rescaled when T changes.
    """

    kind: Kind = "linear"
    T: int = 1000
    beta_1: float = 1e-4
    beta_T: float = 0.02

    def betas(self) -> Array:
        """(T,) the variances beta_1 .. beta_T."""
        if self.kind == "linear":
            return np.linspace(self.beta_1, self.beta_T, self.T)
        if self.kind == "quadratic":
            return np.linspace(np.sqrt(self.beta_1), np.sqrt(self.beta_T), self.T) ** 2
        if self.kind == "constant":
            return np.full(self.T, self.beta_T)
        angle = (np.arange(self.T + 1) / self.T + _COSINE_OFFSET) / (1 + _COSINE_OFFSET)
        f = np.cos(angle * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], _COSINE_BETA_MAX)

    def check(self) -> None:
        """Raise ConfigError where the schedule would not be a diffusion."""
        if self.kind not in get_args(Kind):
            raise ConfigError(f"schedule {self.kind!r}: choose one of {', '.join(get_args(Kind))}")
        if not 2 <= self.T <= 100_000:
            raise ConfigError(f"a schedule of T={self.T} steps: T must be 2..100000")
        if self.kind != "cosine" and not 0 < self.beta_1 <= self.beta_T < 1:
            raise ConfigError(
                f"schedule from beta_1={self.beta_1} to beta_T={self.beta_T}: "
                "0 < beta_1 <= beta_T < 1 is needed"
            )


@dataclass(frozen=True)
class Plan:
    """The steps of a walk: `timesteps` (n+1,) integers, T = t_0 > ... > t_n >= 1, and `packet_bpd`
    (n,), the bits per dimension that each step's packet is expected to have."""

    timesteps: Indices
    packet_bpd: Array

    @property
    def steps(self) -> int:
        """n, the number of steps."""
        return len(self.timesteps) - 1


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x_0_weight x_0 + x_t_weight x_t, variance I)."""

    x_0_weight: Array
    x_t_weight: Array
    variance: Array


class Schedule:
    """Constants of one diffusion. `config` says which; all arrays have length T + 1."""

    def __init__(self, config: ScheduleConfig) -> None:
        config.check()
        self.config = config
        self.T = config.T
        self.beta: Array = np.concatenate([[0.0], config.betas()])
        self.log_alpha_bar: Array = np.cumsum(np.log1p(-self.beta))
        self.alpha_bar: Array = np.exp(self.log_alpha_bar)
        if self.alpha_bar[-1] < _LEAST_ALPHA_BAR:
            raise ConfigError(
                f"a {config.kind} schedule of T={config.T} steps ends at alpha_bar="
                f"{self.alpha_bar[-1]:.1e}, which leaves no signal to predict: "
                "choose fewer steps or a smaller beta_T"
            )
        self.variance: Array = -np.expm1(self.log_alpha_bar)
        """(T+1,) 1 - alpha_bar, the variance of q(x_t | x_0)."""

    @cached_property
    def log_snr(self) -> Array:
        """(T+1,) log(alpha_bar / (1 - alpha_bar)) in nats; infinite at t = 0."""
        with np.errstate(divide="ignore"):
            return self.log_alpha_bar - np.log(self.variance)

    @cached_property
    def snr(self) -> Array:
        """(T+1,) alpha_bar / (1 - alpha_bar); infinite at t = 0."""
        return np.exp(self.log_snr)

    def posterior(self, t: npt.ArrayLike, s: npt.ArrayLike) -> Posterior:
        """q(x_s | x_t, x_0) for 0 <= s < t <= T, arrays of one shape.

        Ho et al. 2020, Eq. 7, with beta_t generalised to
        beta_{t|s} = 1 - alpha_bar_t / alpha_bar_s (Kingma et al. 2021, Appendix A):
        beta_tilde = (1 - alpha_bar_s) / (1 - alpha_bar_t) * beta_{t|s}.

        Raises ConfigError when s or t is out of order or out of range.
        """
        t, s = np.asarray(t), np.asarray(s)
        if not (np.all(s >= 0) and np.all(s < t) and np.all(t <= self.T)):
            raise ConfigError(f"a step needs 0 <= s < t <= {self.T}")
        log_alpha_ts, beta_ts = self.log_alpha_bar[t] - self.log_alpha_bar[s], self.beta_ts(t, s)
        ratio = self.variance[s] / self.variance[t]
        return Posterior(
            x_0_weight=np.sqrt(self.alpha_bar[s]) * beta_ts / self.variance[t],
            x_t_weight=np.exp(0.5 * log_alpha_ts) * ratio,
            variance=ratio * beta_ts,
        )

    def beta_ts(self, t: npt.ArrayLike, s: npt.ArrayLike) -> Array:
        """beta_{t|s} = 1 - alpha_bar_t / alpha_bar_s, the variance of q(x_t | x_s)."""
        return -np.expm1(self.log_alpha_bar[np.asarray(t)] - self.log_alpha_bar[np.asarray(s)])

    def x_0_coefficients(self, kind: Parameterization) -> tuple[Array, Array]:
        """(a, b), each (T+1,): x_0_hat = a_t x_t + b_t prediction. Index 0 is not used.

        eps:      x_0_hat = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)   (Eq. 15)
        mu_tilde: Eq. 7 with s = t - 1, solved for x_0
        v:        x_0_hat = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v
                  (Salimans & Ho 2022, Appendix D)
        """
        alpha, sigma = np.sqrt(self.alpha_bar), np.sqrt(self.variance)
        if kind == "eps":
            return 1 / alpha, -sigma / alpha
        if kind == "v":
            return alpha, -sigma
        if kind == "x_0":
            return np.zeros(self.T + 1), np.ones(self.T + 1)
        if kind != "mu_tilde":
            raise ConfigError(
                f"prediction {kind!r}: choose one of {', '.join(get_args(Parameterization))}"
            )
        t = np.arange(1, self.T + 1)
        step = self.posterior(t, t - 1)
        a, b = -step.x_t_weight / step.x_0_weight, 1 / step.x_0_weight
        return np.concatenate([[0.0], a]), np.concatenate([[1.0], b])

    def log_snr_grid(self, steps: int) -> Indices:
        """(steps,) distinct timesteps T = t_1 > ... > t_steps = 1, even in log SNR.

        As even as whole timesteps allow: where one timestep is a longer stretch of log SNR
        than wanted, the rest is shared out again. Raises ConfigError unless 2 <= steps <= T.
        """
        if not 2 <= steps <= self.T:
            raise ConfigError(f"a chain of {steps} steps: choose 2..{self.T} steps for this model")
        grid = [1]
        for left in range(steps - 1, 0, -1):
            here = self.log_snr[grid[-1]]
            wanted = here + (self.log_snr[self.T] - here) / left
            nearest = int(np.argmin(np.abs(self.log_snr[1:] - wanted))) + 1
            grid.append(min(max(nearest, grid[-1] + 1), self.T - left + 1))
        return np.array(grid[::-1], dtype=np.int64)
