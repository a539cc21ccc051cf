"""The learned variance (Nichol & Dhariwal 2021, Eq. 15): its formula, its bound, its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ddpm_codec.bound import evaluate_bound, step_kl_nats
from ddpm_codec.diffusion import DiffusionModel, Estimate
from ddpm_codec.errors import ConfigError
from ddpm_codec.gaussian import sum_dims
from ddpm_codec.objectives import TrainingLoss
from ddpm_codec.schedule import Schedule
from ddpm_codec.training import Trainer, TrainingConfig
from ddpm_codec.unet import Prediction
from ddpm_codec.units import from_uint8

from .conftest import TINY, random_checkpoint

RANGE = replace(TINY, variance_head="range")


def model_with(head, config=RANGE):
    """A model whose network answers zeros and `head`."""

    def network(x_t, t):
        return Prediction(torch.zeros_like(x_t), torch.full_like(x_t, head))

    schedule = Schedule(config.schedule)
    return DiffusionModel(
        network, schedule, config.parameterization, "learned", variance_head="range"
    )


@pytest.mark.parametrize(("t", "s"), [(20, 19), (2, 1), (20, 1), (13, 5)])
@pytest.mark.parametrize("v", [-1.0, -0.3, 0.5, 1.0])
def test_log_variance_lies_between_those_of_the_chain_that_is_walked(t, s, v):
    """Respaced, too: betas and posterior of the chain of the steps taken, formed one by one."""
    model, x_t = model_with(v), torch.randn(1, 3, 8, 8)
    t_, s_ = torch.tensor([t]), torch.tensor([s])
    excess = model.reverse_excess(model.estimate(x_t, t_), t_, s_).double()
    alpha_bar = np.cumprod(1 - RANGE.schedule.betas())
    beta = 1 - alpha_bar[t - 1] / alpha_bar[s - 1]
    beta_tilde = beta * (1 - alpha_bar[s - 1]) / (1 - alpha_bar[t - 1])
    fraction = (v + 1) / 2
    variance = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(beta_tilde))
    torch.testing.assert_close(
        beta_tilde * (1 + excess), torch.full_like(excess, variance), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(("v", "rule"), [(1.0, "beta"), (-1.0, "beta_tilde")])
def test_the_ends_of_the_range_are_the_papers_two_choices(v, rule, pixels):
    learned = model_with(v)
    fixed = replace(learned, variance=rule)
    reports = [
        evaluate_bound(model, pixels, torch.Generator().manual_seed(0)).as_json()
        for model in (learned, fixed)
    ]
    for key in ("rate_bpd", "decoder_bpd"):
        assert reports[0][key] == pytest.approx(reports[1][key], rel=1e-5)


def test_p_is_diagonal_in_pixels_and_its_kl_is_the_gaussians():
    """Against KL of two Gaussians in pixels, with a variance of its own for each of them."""
    model = model_with(0.0)
    x_0 = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    x_t = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    t, s = torch.tensor([20, 7]), torch.tensor([11, 6])
    estimate = Estimate(torch.zeros_like(x_0), fraction=torch.rand_like(x_0))
    q = model.posterior(x_0, x_t, t, s)
    mean = model.posterior(estimate.x_0_hat, x_t, t, s).mean
    variance = q.variance * (1 + model.reverse_excess(estimate, t, s))
    ratio = q.variance / variance
    kl = 0.5 * sum_dims(ratio - 1 - ratio.log() + (q.mean - mean) ** 2 / variance)
    torch.testing.assert_close(step_kl_nats(model, estimate, x_0, t, s), kl)


def test_the_heads_loss_is_the_bound_with_its_mean_held_fixed():
    """Its gradient reaches the head alone, and its value is the terms of the bound."""
    pixels = torch.randint(64, 192, (256, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    x_0 = from_uint8(pixels.to(torch.uint8))
    first = torch.zeros(x_0.shape, requires_grad=True)
    second = torch.full(x_0.shape, 0.2, requires_grad=True)
    losses = []
    for weight in (1.0, 0.0):
        loss = TrainingLoss(RANGE, "vlb", weight)
        batch = loss.draw(x_0, torch.Generator().manual_seed(2))
        losses.append(loss(lambda x_t, t: (first, second), batch))
    [gradient] = torch.autograd.grad(losses[0] - losses[1], [first], allow_unused=True)
    assert gradient is None or not gradient.any()
    model, schedule = model_with(0.2), Schedule(RANGE.schedule)
    alpha, sigma = np.sqrt(schedule.alpha_bar), np.sqrt(schedule.variance)
    terms = []
    for i in range(256):
        t = int(batch.t[i])
        x_t = alpha[t] * x_0[i : i + 1].double() + sigma[t] * batch.eps[i : i + 1].double()
        t_ = torch.tensor([t])
        estimate = model.estimate(x_t, t_)
        if t > 1:
            nats = step_kl_nats(model, estimate, x_0[i : i + 1].double(), t_, t_ - 1)
        else:
            nats = -model.decoder(estimate, t_).log_prob_nats(pixels[i : i + 1].to(torch.uint8))
        terms.append(float(nats) / x_0[0].numel() / float(batch.chance[i]))
    # L_0's density stands in for its bins.
    assert (losses[0] - losses[1]).item() == pytest.approx(np.mean(terms), rel=1e-3)


def test_training_learns_a_variance_that_beats_the_fixed_ones(pixels):
    """On one batch of pictures, a few steps are enough for the head to find its range."""
    config = TrainingConfig(steps=150, batch=16, crop=8, warmup_steps=2, log_variance_weight=1.0)
    trainer = Trainer.start(RANGE, config)
    for _ in trainer.run(lambda count, g: pixels[torch.randint(6, (count,), generator=g)]):
        pass
    trained = trainer.checkpoint()
    total = {
        rule: evaluate_bound(trained.model(rule), pixels, torch.Generator().manual_seed(0))
        for rule in ("learned", "beta", "beta_tilde")
    }
    bpd = {rule: bound.as_json()["total_bpd"] for rule, bound in total.items()}
    assert bpd["learned"] < min(bpd["beta"], bpd["beta_tilde"])


def test_only_a_checkpoint_that_learned_one_has_it(tiny):
    with pytest.raises(ConfigError, match="not learned a variance"):
        tiny.model("learned")
    random_checkpoint(RANGE).model("learned")
