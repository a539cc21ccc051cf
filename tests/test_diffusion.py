"""The traversal: every image at its own pace, and sampling that recovers the source's law."""

import numpy as np
import pytest
import torch

from ddpm_codec.diffusion import DiffusionModel
from ddpm_codec.errors import ConfigError
from ddpm_codec.reverse import ancestral_sample, reverse_chain
from ddpm_codec.schedule import Schedule, ScheduleConfig

from .oracles.gaussian_source import ExactDenoiser, white_calibration


@pytest.fixture
def gaussian():
    schedule = Schedule(ScheduleConfig(T=200, beta_T=0.1))
    return DiffusionModel(ExactDenoiser(schedule, 0.25), schedule, "x_0", "beta_tilde")


def test_images_walk_at_their_own_pace(gaussian):
    x_t = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    walk = reverse_chain(gaussian, x_t, torch.tensor([200, 50, 3]))
    step = next(walk)
    sizes = []
    try:
        while True:
            sizes.append(len(step.t))
            s = (step.t - 50).clamp_min(0)
            step = walk.send((s, step.x_0_hat))
    except StopIteration as stop:
        x_0 = stop.value
    assert sizes == [3, 1, 1, 1]
    assert x_0.shape == x_t.shape


def test_a_walk_alone_is_the_walk_in_a_batch(gaussian):
    x_t = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    def walk(x, t):
        chain = reverse_chain(gaussian, x, t)
        step = next(chain)
        try:
            while True:
                step = chain.send((step.t // 2, 0.5 * step.x_0_hat + 0.1))
        except StopIteration as stop:
            return stop.value

    together = walk(x_t, torch.tensor([200, 7]))
    alone = [walk(x_t[i : i + 1], torch.tensor([t])) for i, t in enumerate((200, 7))]
    torch.testing.assert_close(together, torch.cat(alone))


def test_steps_upward_are_refused(gaussian):
    walk = reverse_chain(gaussian, torch.zeros(1, 1, 2, 2), torch.tensor([5]))
    step = next(walk)
    with pytest.raises(ConfigError):
        walk.send((torch.tensor([5]), step.x_t))


@pytest.mark.parametrize("steps", [20, 200])
def test_ancestral_samples_have_the_sources_variance(steps):
    """Algorithm 2 with the exact denoiser and the exact reverse variance: N(0, 1/4) again."""
    schedule = Schedule(ScheduleConfig(T=200, beta_T=0.1))
    denoiser = ExactDenoiser(schedule, 0.25)
    table = white_calibration(denoiser.mse())
    model = DiffusionModel(denoiser, schedule, "x_0", "calibrated", table)
    x_T = torch.randn(5000, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    walk = ancestral_sample(
        model, x_T, schedule.log_snr_grid(steps), torch.Generator().manual_seed(0)
    )
    taken = 0
    try:
        while True:
            next(walk)
            taken += 1
    except StopIteration as stop:
        x_0 = stop.value
    assert taken == steps
    # The last x_0_hat carries no noise: its variance is that of x_0 less the last error.
    expected = 0.25 - denoiser.mse()[1]
    n = x_0.numel()
    assert abs(x_0.var().item() - expected) < 4.5 * expected * np.sqrt(2 / n)
    assert abs(x_0.mean().item()) < 4.5 * np.sqrt(expected / n)
