"""The diffusion: q, the reverse process p_theta and the decoder.

`DiffusionModel` joins a denoiser, a schedule and a variance rule. p_theta(x_s | x_t) is the
posterior q(x_s | x_t, x_0 = x_0_hat) with a variance of its own, for every s < t, not only
s = t - 1.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddpm_codec.bands import band_index, block_means, from_bands, to_bands
from ddpm_codec.conditional import ConditionalGaussian
from ddpm_codec.discretized import (
    DiscretizedGaussian,
    PixelDecoder,
    TanhGaussian,
    without_rounding,
)
from ddpm_codec.errors import ConfigError
from ddpm_codec.gaussian import DiagonalGaussian
from ddpm_codec.schedule import Array, Parameterization, Schedule
from ddpm_codec.unet import Prediction

VarianceRule = Literal["beta", "beta_tilde", "learned", "one_number", "band", "calibrated"]
VarianceHead = Literal["error", "range"]
Convention = Literal["exact", "openai"]
MEASURED = ("one_number", "band", "calibrated")
"""Variance rules that need a calibration, from coarse to fine."""


class Denoiser(Protocol):
    """x_t (N,C,H,W) float, t (N,) int64 in 1..T, to a `Prediction` of the same shape."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction: ...


@dataclass(frozen=True)
class Calibration:
    """Errors of a trained model, measured at every t on validation crops.

    `x_0_mse` (T+1,): E|x_0 - x_0_hat|^2 / D. `head_scale` (T+1,): the mean of squared error
    over the variance that the model's log-variance head predicts; 1 without a head.
    For the coefficients r of `to_bands(x_0 - x_0_hat)`, by band, (T+1, 64 C) float16:
    `band_share`: E[r^2] / x_0_mse; `band_ratio` and `band_power`: the c and g of the likeliest
    variance c x_0_mse (v / x_0_mse)^g of r, v the mean over the 8x8 block of the head's variance
    times head_scale; g is 0 without a head. Index 0 is not used.
    `pixel_weights` (4 C, 4, 9 C) and `pixel_spread` (4 C, 4): the w and c at t = 1 of a
    `ConditionalGaussian`, where they were measured.
    """

    x_0_mse: Array
    head_scale: Array
    band_share: npt.NDArray[np.float16]
    band_ratio: npt.NDArray[np.float16]
    band_power: npt.NDArray[np.float16]
    pixel_weights: npt.NDArray[np.float32] | None = None
    pixel_spread: npt.NDArray[np.float32] | None = None


class Estimate(NamedTuple):
    """One network call's view of x_0: `x_0_hat` (N,C,H,W), not clipped, and what the second output
    says, (N,C,H,W) or None: `x_0_variance`, the expected |x_0 - x_0_hat|^2; `fraction` in 0..1,
    where log sigma^2 lies between the logs of beta_tilde and beta."""

    x_0_hat: Tensor
    x_0_variance: Tensor | None = None
    fraction: Tensor | None = None

    def at(self, images: Tensor) -> "Estimate":
        """The estimate of some of the images, by index (M,)."""
        x_0_hat, *others = self
        return Estimate(x_0_hat[images], *(None if x is None else x[images] for x in others))


def broadcast(constants: Array, index: Tensor, like: Tensor) -> Tensor:
    """constants[index] as (N,1,1,1) in the dtype and device of `like`."""
    picked = torch.from_numpy(np.asarray(constants[index.cpu().numpy()]))
    return picked.to(device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class DiffusionModel:
    """A denoiser with its schedule, its parameterization and a reverse variance.

    `convention`: "exact", or "openai" to reproduce what published code computes: x_0_hat clipped to
    [-1, 1], beta_tilde_2 as the decoder's variance, and a tanh for the normal CDF.
    `dependent_pixels`: whether a calibrated decoder is that of `conditional.py`.
    """

    denoiser: Denoiser
    schedule: Schedule
    parameterization: Parameterization = "eps"
    variance: VarianceRule = "beta_tilde"
    calibration: Calibration | None = None
    variance_head: VarianceHead = "error"
    convention: Convention = "exact"
    dependent_pixels: bool = True

    def __post_init__(self) -> None:
        if self.convention == "openai" and self.variance in MEASURED:
            raise ConfigError(
                "OpenAI's conventions know the variances beta, beta_tilde and learned"
            )
        if self.variance not in get_args(VarianceRule):
            raise ConfigError(
                f"variance {self.variance!r}: choose one of {', '.join(get_args(VarianceRule))}"
            )
        if self.variance in MEASURED and self.calibration is None:
            raise ConfigError(
                "this checkpoint has no calibration: run `ddpm-codec calibrate`, or choose "
                "the variance beta or beta_tilde"
            )

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, Eq. 4)."""
        alpha = broadcast(np.sqrt(self.schedule.alpha_bar), t, x_0)
        return alpha * x_0 + broadcast(np.sqrt(self.schedule.variance), t, x_0) * eps

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> DiagonalGaussian:
        """q(x_s | x_t, x_0) for 1 <= s < t, per image (Eq. 7 for any s)."""
        weights = self.schedule.posterior(t.cpu().numpy(), s.cpu().numpy())
        every = torch.arange(len(t))
        x_0_weight, x_t_weight, variance = (broadcast(w, every, x_t) for w in weights)
        return DiagonalGaussian(x_0_weight * x_0 + x_t_weight * x_t, variance)

    def estimate(self, x_t: Tensor, t: Tensor) -> Estimate:
        """Call the denoiser once. x_t (N,C,H,W), t (N,) int64."""
        prediction, log_variance = self.denoiser(x_t, t)
        a, b = self.schedule.x_0_coefficients(self.parameterization)
        b_t = broadcast(b, t, x_t)
        x_0_hat = broadcast(a, t, x_t) * x_t + b_t * prediction.to(x_t.dtype)
        if self.convention == "openai":
            x_0_hat = x_0_hat.clamp(-1, 1)
        if log_variance is None:
            return Estimate(x_0_hat)
        second = log_variance.to(x_t.dtype)
        if self.variance_head == "range":
            return Estimate(x_0_hat, fraction=(second + 1) / 2)
        return Estimate(x_0_hat, x_0_variance=b_t**2 * second.exp())

    def coordinates(self, x: Tensor) -> Tensor:
        """x (N,C,H,W) in the orthonormal basis in which p_theta's variance is diagonal: the pixels
        where it is learned, else the coefficients of `to_bands`."""
        return x if self.variance == "learned" else to_bands(x)

    def from_coordinates(self, y: Tensor) -> Tensor:
        """The inverse of `coordinates`."""
        return y if self.variance == "learned" else from_bands(y)

    def error_variance(self, estimate: Estimate, t: Tensor) -> Tensor:
        """What a measured variance rule expects of to_bands(x_0 - x_0_hat)^2; broadcasts to
        (N,C,H,W).

        one_number: E|x_0 - x_0_hat|^2 / D at t; band: a number a band; calibrated: a number a band
        times a power of the scale that the head predicts for the 8x8 block.
        """
        x_0_hat, calibration = estimate.x_0_hat, self.calibration
        assert calibration is not None
        mse = broadcast(calibration.x_0_mse, t, x_0_hat)
        if self.variance == "one_number":
            return mse
        index = band_index(*x_0_hat.shape[1:]).to(x_0_hat.device)

        def pattern(table: npt.NDArray[np.float16]) -> Tensor:
            return torch.from_numpy(table[t.cpu().numpy()]).to(x_0_hat)[:, index]

        if self.variance == "band":
            return pattern(calibration.band_share) * mse
        ratio = pattern(calibration.band_ratio) * mse
        if estimate.x_0_variance is None:
            return ratio
        scale = broadcast(calibration.head_scale, t, x_0_hat) / mse
        return ratio * (block_means(estimate.x_0_variance) * scale) ** pattern(
            calibration.band_power
        )

    def reverse_excess(self, estimate: Estimate, t: Tensor, s: Tensor) -> Tensor:
        """e = (sigma^2 - beta_tilde) / beta_tilde of p_theta(x_s | x_t), 1 <= s < t, for each of
        the `coordinates`; broadcasts to (N,C,H,W).

        beta: sigma^2 = beta_{t|s}, so e = (1 - alpha_bar_t) / (1 - alpha_bar_s) - 1; beta_tilde:
        0 (both Section 3.2). Learned: log(1 + e) is `fraction` times that of beta. Measured:
        sigma^2 = beta_tilde + x_0_weight^2 E[error^2], the least KL for this mean (Bao et al.
        2022, Analytic-DPM, Eq. 7, with the error measured), and x_0_weight^2 / beta_tilde =
        SNR_s - SNR_t.
        """
        x_0_hat = estimate.x_0_hat
        t_, s_ = t.cpu().numpy(), s.cpu().numpy()
        every = torch.arange(len(t_))
        if self.variance in MEASURED:
            gain = broadcast(self.schedule.snr[s_] - self.schedule.snr[t_], every, x_0_hat)
            return gain * self.error_variance(estimate, t)
        wider = self.schedule.variance[t_] / self.schedule.variance[s_] - 1
        if estimate.fraction is not None and self.variance == "learned":
            return torch.expm1(estimate.fraction * broadcast(np.log1p(wider), every, x_0_hat))
        return broadcast(wider if self.variance == "beta" else 0 * wider, every, x_0_hat)

    def decoder(self, estimate: Estimate, t: Tensor) -> PixelDecoder:
        """p_theta(x_0 | x_t) from any t: Eq. 13 or, at t = 1 of a calibrated model, that of
        dependent pixels (`conditional.py`)."""
        if not self.conditional:
            return self.independent_decoder(estimate, t)
        assert self.calibration is not None
        assert self.calibration.pixel_weights is not None
        assert self.calibration.pixel_spread is not None
        return ConditionalGaussian(
            estimate.x_0_hat,
            self.pixel_variance(estimate, t).expand_as(estimate.x_0_hat),
            broadcast(self.schedule.variance, t, estimate.x_0_hat),
            (t == 1).view(-1, 1, 1, 1),
            self.calibration.pixel_weights,
            self.calibration.pixel_spread,
        )

    @property
    def conditional(self) -> bool:
        """Whether the decoder's pixels depend on each other."""
        tables = self.calibration
        known = tables is not None and tables.pixel_weights is not None
        return known and self.variance == "calibrated" and self.dependent_pixels

    def pixel_variance(self, estimate: Estimate, t: Tensor) -> Tensor:
        """What a measured variance rule expects of (x_0 - x_0_hat)^2, broadcasts to (N,C,H,W)."""
        calibration = self.calibration
        assert calibration is not None
        if estimate.x_0_variance is None:
            return broadcast(calibration.x_0_mse, t, estimate.x_0_hat)
        scale = broadcast(calibration.head_scale, t, estimate.x_0_hat)
        return estimate.x_0_variance * scale

    def independent_decoder(self, estimate: Estimate, t: Tensor) -> DiscretizedGaussian:
        """p_theta(x_0 | x_t), Eq. 13, from any t.

        Variances: beta: 1 - alpha_bar_t, which is beta_1 at t = 1; beta_tilde: beta_tilde_2 at
        t = 1, as the authors' code has it, and in proportion to 1 - alpha_bar_t elsewhere;
        learned: between these two, in the logarithm; measured: the error of x_0_hat, from the
        head where there is one, `without_rounding`.
        """
        x_0_hat = estimate.x_0_hat
        variance = self.schedule.variance
        if self.variance == "beta" and self.convention == "exact":
            return DiscretizedGaussian(x_0_hat, broadcast(np.sqrt(variance), t, x_0_hat))
        if self.variance not in MEASURED or self.calibration is None:
            beta_tilde_2 = self.schedule.posterior(2, 1).variance
            std = broadcast(np.sqrt(beta_tilde_2 * variance / variance[1]), t, x_0_hat)
            if estimate.fraction is not None and self.variance == "learned":
                std = std * (variance[1] / beta_tilde_2) ** (0.5 * estimate.fraction)
            kind = TanhGaussian if self.convention == "openai" else DiscretizedGaussian
            return kind(x_0_hat, std)
        expected = self.pixel_variance(estimate, t)
        return DiscretizedGaussian(x_0_hat, without_rounding(expected).sqrt())
