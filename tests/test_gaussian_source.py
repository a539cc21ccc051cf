"""Oracles 1 and 2: a Gaussian source with its exact denoiser, in closed form and by the code.

One source covers schedule, posterior, bound and curve: the rate of a chain may not fall below
R(D), its gap falls as 1/K with beta_tilde and vanishes with the calibrated variance.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ddpm_codec.bands import to_bands
from ddpm_codec.bound import step_kl_nats
from ddpm_codec.diffusion import MEASURED, DiffusionModel, Estimate
from ddpm_codec.gaussian import DiagonalGaussian, excess_kl_nats
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.schedule import Schedule, ScheduleConfig

from .oracles.gaussian_source import ExactDenoiser, betas_even_in_log_snr, white_calibration

ENDS = (9.0, -9.0)


@dataclass(frozen=True)
class EvenConfig(ScheduleConfig):
    """Even in log SNR between fixed ends."""

    def betas(self):
        return betas_even_in_log_snr(self.T, *ENDS)


def gaussian_model(steps: int, variance: str) -> DiffusionModel:
    schedule = Schedule(EvenConfig(T=steps))
    denoiser = ExactDenoiser(schedule)
    return DiffusionModel(denoiser, schedule, "x_0", variance, white_calibration(denoiser.mse()))


def expected_rate_nats(model: DiffusionModel) -> tuple[np.ndarray, np.ndarray]:
    """Per dimension and t = T..1: rate to hold x_t, and the distortion of x_0_hat(x_t)."""
    t = np.arange(model.schedule.T, 1, -1)
    mse = model.denoiser.mse()
    nothing = Estimate(torch.zeros(len(t), 1, 1, 1, dtype=torch.float64), None)
    excess = model.reverse_excess(nothing, torch.from_numpy(t), torch.from_numpy(t - 1)).flatten()
    gain = model.schedule.snr[t - 1] - model.schedule.snr[t]
    kl = excess_kl_nats(excess, torch.from_numpy(gain * mse[t])).numpy()
    v, a = model.schedule.variance[-1], model.schedule.alpha_bar[-1]
    prior = 0.5 * (a + v - 1 - np.log(v))
    return prior + np.concatenate([[0.0], np.cumsum(kl)]), mse[model.schedule.T : 0 : -1]


def R_of_D(distortion):
    return 0.5 * np.log(1 / distortion)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "calibrated"])
@pytest.mark.parametrize("steps", [5, 50, 500])
def test_rate_stays_above_rate_distortion_function(variance, steps):
    rate, distortion = expected_rate_nats(gaussian_model(steps, variance))
    assert np.all(rate > R_of_D(distortion) - 1e-12)


def test_gap_falls_as_one_over_K_with_beta_tilde():
    gaps = []
    for steps in (200, 400, 800, 1600):
        rate, distortion = expected_rate_nats(gaussian_model(steps, "beta_tilde"))
        gaps.append(rate[-1] - R_of_D(distortion[-1]))
    slopes = np.diff(np.log(gaps)) / np.log(2)
    np.testing.assert_allclose(slopes, -1, atol=0.05)


def test_gap_vanishes_with_calibrated_variance():
    """But for the prior: x_T is sent with N(0, I), and a source of variance 1 is N(0, I) there."""
    for steps in (2, 5, 50, 500):
        rate, distortion = expected_rate_nats(gaussian_model(steps, "calibrated"))
        excess = rate - R_of_D(distortion)
        np.testing.assert_allclose(np.diff(excess), 0, atol=1e-9)
        prior_only = rate[0] - R_of_D(distortion[0])
        assert excess[-1] == pytest.approx(prior_only, abs=1e-9)


def test_code_agrees_with_the_closed_form_on_draws():
    """KL(posterior || p) of real tensors, averaged, against the expectation."""
    for variance in ("beta_tilde", "calibrated"):
        model = gaussian_model(12, variance)
        generator = torch.Generator().manual_seed(3)
        x_0 = torch.randn(4000, 1, 4, 4, generator=generator, dtype=torch.float64)
        rate = 0.0
        sem2 = 0.0
        for t in range(12, 1, -1):
            kl = tensor_kl_nats(model, x_0, t, t - 1, generator) / 16
            rate += kl.mean().item()
            sem2 += kl.var().item() / len(kl)
        expected = np.diff(expected_rate_nats(model)[0]).sum()
        assert abs(rate - expected) < 4.5 * sem2**0.5


def tensor_kl_nats(model, x_0, t, s, generator):
    """(N,) KL(q(x_s | x_t, x_0) || p(x_s | x_t)) by the general code path of two Gaussians."""
    t_, s_ = torch.full((len(x_0),), t), torch.full((len(x_0),), s)
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
    x_t = model.q_sample(x_0, t_, eps)
    step = ReverseStep(model, t_, x_t, model.estimate(x_t, t_))
    q = model.posterior(x_0, x_t, t_, s_)
    return DiagonalGaussian(to_bands(q.mean), q.variance).kl_nats(step.p(s_))


def test_kl_with_beta_tilde_is_half_the_snr_difference_times_the_error():
    """Oracle 1, for all 1 <= s < t of a 40-step chain and some of the paper's."""
    paper = Schedule(ScheduleConfig())
    short = Schedule(ScheduleConfig(T=40, beta_T=0.4))
    pairs = [(short, t, s) for t in range(2, 41) for s in range(1, t)]
    pairs += [(paper, t, s) for t in (2, 3, 10, 500, 1000) for s in (1, t // 2, t - 1) if s]
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    for schedule, t, s in pairs:
        if s >= t:
            continue
        model = DiffusionModel(ExactDenoiser(schedule, 0.3), schedule, "x_0", "beta_tilde")
        state = generator.get_state()
        kl = tensor_kl_nats(model, x_0, t, s, generator)
        generator.set_state(state)
        eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
        t_ = torch.full((3,), t)
        x_0_hat = model.estimate(model.q_sample(x_0, t_, eps), t_).x_0_hat
        error2 = ((x_0 - x_0_hat) ** 2).flatten(1).sum(1)
        expected = 0.5 * (schedule.snr[s] - schedule.snr[t]) * error2
        torch.testing.assert_close(kl, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", *MEASURED])
def test_fast_kl_is_the_general_one(variance):
    """`step_kl_nats` from SNRs against `DiagonalGaussian.kl_nats` of the two Gaussians."""
    plain = gaussian_model(30, "calibrated")
    rng = np.random.default_rng(0)
    uneven = rng.uniform(0.5, 2, size=(31, 64)).astype(np.float16)
    table = replace(plain.calibration, band_share=uneven, band_ratio=uneven[::-1].copy())
    model = replace(plain, variance=variance, calibration=table)
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(5, 1, 9, 4, generator=generator, dtype=torch.float64)
    state = generator.get_state()
    general = tensor_kl_nats(model, x_0, 20, 7, generator)
    generator.set_state(state)
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
    t_, s_ = torch.full((5,), 20), torch.full((5,), 7)
    estimate = model.estimate(model.q_sample(x_0, t_, eps), t_)
    fast = step_kl_nats(model, estimate, x_0, t_, s_)
    torch.testing.assert_close(fast, general, rtol=1e-9, atol=0)
