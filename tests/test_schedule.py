"""Schedules against their definitions, at the paper's T and at absurd ones."""

import numpy as np
import pytest

from ddpm_codec.errors import ConfigError
from ddpm_codec.schedule import Schedule, ScheduleConfig


@pytest.fixture(params=["linear", "quadratic", "constant", "cosine"])
def kind(request):
    return request.param


@pytest.mark.parametrize("T", [2, 3, 10, 50, 1000])
def test_every_schedule_is_finite_at_every_length(kind, T):
    s = Schedule(ScheduleConfig(kind, T))
    assert s.alpha_bar[0] == 1
    assert len(s.alpha_bar) == T + 1
    assert np.all((s.beta[1:] > 0) & (s.beta[1:] < 1))
    assert np.all(np.diff(s.alpha_bar) < 0)
    t = np.arange(2, T + 1)
    for constants in (s.posterior(t, t - 1), s.x_0_coefficients("mu_tilde")):
        assert all(np.all(np.isfinite(c)) for c in constants)


def test_linear_is_the_papers():
    s = Schedule(ScheduleConfig())
    np.testing.assert_allclose(s.beta[[1, 1000]], [1e-4, 0.02])
    np.testing.assert_allclose(s.alpha_bar, np.cumprod(1 - s.beta), rtol=1e-12)
    # DDPM's code has sigma_1 = 0.00738 = sqrt(beta_tilde_2) in place of sqrt(beta_1).
    assert np.sqrt(s.posterior(2, 1).variance) == pytest.approx(0.00738, abs=5e-6)


def test_posterior_is_bayes_rule(kind):
    """q(x_s | x_t, x_0) from the joint covariance of (x_s, x_t) given x_0."""
    s = Schedule(ScheduleConfig(kind))
    for t, u in ((2, 1), (1000, 1), (500, 499), (700, 20)):
        ratio = np.prod(1 - s.beta[u + 1 : t + 1])
        v_u, v_t = 1 - np.prod(1 - s.beta[: u + 1]), 1 - np.prod(1 - s.beta[: t + 1])
        gain = v_u * np.sqrt(ratio) / v_t
        x_0_weight = np.sqrt(s.alpha_bar[u]) - gain * np.sqrt(s.alpha_bar[t])
        p = s.posterior(t, u)
        np.testing.assert_allclose(p.x_t_weight, gain, rtol=1e-9)
        np.testing.assert_allclose(p.x_0_weight, x_0_weight, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(p.variance, v_u - gain**2 * v_t, rtol=1e-7)


@pytest.mark.parametrize("kind_of_prediction", ["eps", "x_0", "mu_tilde", "v"])
def test_x_0_hat_of_a_perfect_prediction_is_x_0(kind_of_prediction):
    s = Schedule(ScheduleConfig())
    rng = np.random.default_rng(0)
    x_0, eps = rng.normal(size=1001), rng.normal(size=1001)
    alpha, sigma = np.sqrt(s.alpha_bar), np.sqrt(s.variance)
    x_t = alpha * x_0 + sigma * eps
    t = np.arange(1, 1001)
    step = s.posterior(t, t - 1)
    mu_tilde = np.append(0, step.x_0_weight * x_0[1:] + step.x_t_weight * x_t[1:])
    perfect = {"eps": eps, "x_0": x_0, "mu_tilde": mu_tilde, "v": alpha * eps - sigma * x_0}
    a, b = s.x_0_coefficients(kind_of_prediction)
    x_0_hat = a * x_t + b * perfect[kind_of_prediction]
    np.testing.assert_allclose(x_0_hat[1:], x_0[1:], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig(T=1),
        ScheduleConfig(beta_T=1.0),
        ScheduleConfig(beta_1=0.0),
        ScheduleConfig("constant", T=1000, beta_T=0.9),
        ScheduleConfig("cubic"),
    ],
)
def test_what_is_no_diffusion_is_refused(config):
    with pytest.raises(ConfigError):
        Schedule(config)


@pytest.mark.parametrize("steps", [2, 7, 100, 999, 1000])
def test_log_snr_grid_is_distinct_and_complete(kind, steps):
    s = Schedule(ScheduleConfig(kind))
    grid = s.log_snr_grid(steps)
    assert len(grid) == steps
    assert (grid[0], grid[-1]) == (1000, 1)
    assert np.all(np.diff(grid) < 0)


def test_log_snr_grid_is_even_where_timesteps_are_dense():
    s = Schedule(ScheduleConfig())
    gaps = np.diff(s.log_snr[s.log_snr_grid(12)])
    assert gaps.max() / gaps.min() < 1.2
