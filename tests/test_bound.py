"""The bound: Monte Carlo, exact sum and sampled estimate agree; curves follow from it."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from ddpm_codec.bands import from_bands
from ddpm_codec.bound import evaluate_bound, expected_kl, sampled_work, step_kl_nats
from ddpm_codec.calibration import calibrate
from ddpm_codec.checkpoint import load_bundled
from ddpm_codec.data import load_batch
from ddpm_codec.diffusion import DiffusionModel, VarianceRule
from ddpm_codec.errors import ConfigError
from ddpm_codec.rate_distortion import expected_curve, table_4
from ddpm_codec.schedule import Schedule, ScheduleConfig
from ddpm_codec.unet import Prediction
from ddpm_codec.units import NATS_PER_BIT, from_uint8, to_uint8

from .oracles.nelbo import monte_carlo_nelbo


@pytest.fixture(params=["beta", "beta_tilde", "calibrated"])
def model(request, tiny, pixels):
    plain = tiny.model("beta_tilde")
    table = calibrate(plain, pixels.repeat(8, 1, 1, 1), torch.Generator().manual_seed(0))
    return replace(plain, variance=request.param, calibration=table)


def test_crops_without_a_whole_block_are_not_calibrated_on(tiny):
    """They lack the highest frequencies: tables of them would have holes."""
    with pytest.raises(ConfigError, match="crops of 7 pixels"):
        calibrate(tiny.model(), torch.zeros(2, 3, 8, 7, dtype=torch.uint8), torch.Generator())


def test_eq_17_by_monte_carlo_is_eq_22(model, pixels):
    """Oracle 4: the same expectation from whole paths and from closed-form KLs."""
    many = pixels.repeat(100, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    sampled = monte_carlo_nelbo(model, many, generator).numpy()
    closed = evaluate_bound(model, many, generator).total_nats
    difference = sampled.reshape(100, -1).mean(1) - closed.reshape(100, -1).mean(1)
    assert abs(difference.mean()) < 4.5 * difference.std(ddof=1) / np.sqrt(100)


def test_sampled_estimate_has_no_bias(model, pixels):
    many = pixels.repeat(100, 1, 1, 1)
    exact = evaluate_bound(model, many, torch.Generator().manual_seed(1)).rate_nats
    for calls in (1, 3, 7, 19):
        generator = torch.Generator().manual_seed(calls)
        estimate = evaluate_bound(model, many, generator, calls).rate_nats
        difference = (estimate - exact).reshape(100, -1).mean(1)
        assert abs(difference.mean()) < 4.5 * difference.std(ddof=1) / np.sqrt(100)


def test_an_image_that_drew_a_timestep_twice_counts_once(model, pixels):
    """Its calls are not independent images: the standard error would come out too small."""
    bound = evaluate_bound(model, pixels, torch.Generator().manual_seed(0), 19)
    terms, repeated = bound.terms, 0
    for row in bound.per_timestep():
        at = terms.work.t == row["t"]
        images = np.unique(terms.work.image[at])
        kl = [terms.nats[at & (terms.work.image == i)].mean() for i in images]
        kl_bpd = np.array(kl) / NATS_PER_BIT / bound.dims
        assert row["images"] == len(images) <= len(pixels)
        assert row["kl_bpd"] == pytest.approx(kl_bpd.mean())
        if len(images) > 1:
            assert row["kl_bpd_sem"] == pytest.approx(kl_bpd.std(ddof=1) / len(images) ** 0.5)
        repeated += int(at.sum()) - len(images)
    assert repeated > 0


@pytest.mark.parametrize("calls", [1, 2, 5, 19])
def test_weights_of_the_sampled_calls_add_up(model, calls):
    """Every t is visited with an expected weight of exactly one. Where a stratum ends at the very
    end of a t, a draw beyond it may be too rare to be among these: 10 of them are allowed for."""
    work = sampled_work(model, 20_000, calls, torch.Generator().manual_seed(0))
    share = expected_kl(model) / expected_kl(model).sum()
    exact = np.append(np.flatnonzero(share > 1 / calls), 1)
    for t in range(1, model.schedule.T + 1):
        total = np.bincount(work.image, work.weight * (work.t == t), minlength=20_000)
        if t in exact:
            assert np.all(total == 1)
        else:
            error = 4.5 * total.std() / np.sqrt(20_000) + 10 / 20_000
            assert abs(total.mean() - 1) < error


def test_a_chain_of_T_steps_is_the_full_bound(model, pixels):
    full = evaluate_bound(model, pixels, torch.Generator().manual_seed(0))
    chain = evaluate_bound(model, pixels, torch.Generator().manual_seed(0), steps=20)
    np.testing.assert_array_equal(full.total_nats, chain.total_nats)
    assert chain.steps == 20


def test_report_adds_up(model, pixels):
    bound = evaluate_bound(model, pixels, torch.Generator().manual_seed(0))
    report = bound.as_json()
    assert report["images"] == 6
    assert report["dims"] == 192
    assert report["total_bpd"] == pytest.approx(report["rate_bpd"] + report["decoder_bpd"])
    steps = report["per_timestep"]
    assert [row["t"] for row in steps] == list(range(20, 1, -1))
    kl = sum(row["kl_bpd"] for row in steps)
    assert report["rate_bpd"] == pytest.approx(report["prior_bpd"] + kl)
    if model.variance == "beta_tilde":
        snr = model.schedule.snr
        for row in steps:
            t = row["t"]
            nats = 0.5 * (snr[t - 1] / snr[t] - 1) * row["eps_mse"]
            assert row["kl_bpd"] == pytest.approx(nats / NATS_PER_BIT, rel=1e-6)


def test_curve_ends_at_the_rate_and_starts_at_the_prior(model, pixels):
    bound = evaluate_bound(model, pixels, torch.Generator().manual_seed(0))
    curve, report = expected_curve(bound), bound.as_json()
    assert list(curve["t"]) == list(range(20, 0, -1))
    assert list(curve["reverse_step"]) == list(range(1, 21))
    assert curve["rate_bpd"].iloc[0] == pytest.approx(report["prior_bpd"])
    assert curve["rate_bpd"].iloc[-1] == pytest.approx(report["rate_bpd"])
    assert np.all(np.diff(curve["rate_bpd"]) >= 0)
    np.testing.assert_allclose(curve["psnr_db"], 20 * np.log10(255 / curve["rmse_255"]))
    assert list(table_4(curve)["reverse_step"]) == list(range(20, 0, -2))


def test_finer_variances_are_better_on_their_own_crops(tiny, pixels):
    """Each measured rule is the best choice of its numbers. The scale of blocks comes from a
    random head here, which need not help."""
    plain, many = tiny.model("beta_tilde"), pixels.repeat(100, 1, 1, 1)
    table = calibrate(plain, many, torch.Generator().manual_seed(0))
    rates = {}
    for variance in get_args(VarianceRule):
        model = replace(plain, variance=variance, calibration=table)
        bound = evaluate_bound(model, many, torch.Generator().manual_seed(1), steps=8)
        rates[variance] = bound.rate_nats.mean()
    assert rates["one_number"] < min(rates["beta"], rates["beta_tilde"])
    assert rates["band"] < rates["one_number"]
    assert rates["calibrated"] < rates["beta_tilde"]


def test_scale_of_the_head_is_used():
    """Blocks of noise of two strengths, a denoiser that says 0 and a head that knows which is
    which: the rate comes down to that of two Gaussians of known variance."""
    generator = torch.Generator().manual_seed(0)
    strong = torch.tensor([0.05, 0.4]).repeat(100).view(-1, 1, 1, 1)
    noise = torch.randn(200, 3, 8, 8, generator=generator)
    pixels = to_uint8(strong * noise)

    def knowing(x_t, t):
        return Prediction(torch.zeros_like(x_t), (strong**2).log().expand_as(x_t))

    schedule = Schedule(ScheduleConfig(T=20, beta_1=1e-3, beta_T=0.3))
    table = calibrate(DiffusionModel(knowing, schedule, "x_0"), pixels, generator)
    x_0, t, s = from_uint8(pixels), torch.full((200,), 10), torch.full((200,), 4)
    gain = schedule.snr[4] - schedule.snr[10]
    kl = {}
    for rule in ("band", "calibrated"):
        model = DiffusionModel(knowing, schedule, "x_0", rule, table)
        kl[rule] = step_kl_nats(model, model.estimate(x_0, t), x_0, t, s)
    expected = 0.5 * 192 * np.log1p(gain * strong.double().numpy() ** 2).mean()
    assert kl["calibrated"].mean().item() == pytest.approx(expected, rel=0.02)
    assert kl["band"].mean() > 1.1 * expected


def test_the_power_of_the_heads_scale_is_found():
    """Blocks whose errors grow with the root of what the head says, and a head of no use for one
    channel: the likeliest powers are one half and none, the variances those of the blocks."""
    generator = torch.Generator().manual_seed(0)
    said = torch.tensor([0.01, 0.04, 0.16]).repeat(80).view(-1, 1, 1, 1)
    std = torch.cat([0.3 * said**0.25, torch.full_like(said, 0.2), 0.1 * said**0.25], dim=1)
    coefficients = std * torch.randn(240, 3, 8, 8, generator=generator)
    pixels = to_uint8(from_bands(coefficients))

    def knowing(x_t, t):
        return Prediction(torch.zeros_like(x_t), said.log().expand_as(x_t))

    schedule = Schedule(ScheduleConfig(T=20, beta_1=1e-3, beta_T=0.3))
    table = calibrate(DiffusionModel(knowing, schedule, "x_0"), pixels, generator, np.array([9]))
    luma, first, second = table.band_power[9].astype(float).reshape(3, 64).mean(axis=1)
    assert (luma, first, second) == pytest.approx((0.5, 0.0, 0.5), abs=0.05)
    model = DiffusionModel(knowing, schedule, "x_0", "calibrated", table)
    t = torch.full((240,), 9)
    variance = model.error_variance(model.estimate(from_uint8(pixels), t), t)
    ratio = variance / std**2
    assert ratio.mean(dim=(2, 3)) == pytest.approx(1, abs=0.06)


def test_calibration_between_measured_timesteps_is_interpolated(tiny, pixels):
    plain, many = tiny.model("beta_tilde"), pixels.repeat(50, 1, 1, 1)
    every = calibrate(plain, many, torch.Generator().manual_seed(0))
    few = calibrate(plain, many, torch.Generator().manual_seed(0), np.arange(1, 21, 2)[::-1])
    np.testing.assert_allclose(few.x_0_mse[1:], every.x_0_mse[1:], rtol=0.2)


def test_no_calibration_is_said(tiny):
    with pytest.raises(ConfigError, match="calibrate"):
        tiny.model("calibrated")


def test_bfloat16_costs_a_thousandth_of_a_bit():
    """On the bundled model and the same noise; measured 0.001 on 24 pictures."""
    pixels, source = load_batch("sample", 2), load_bundled()
    totals = [
        evaluate_bound(
            source.model(bfloat16=low), pixels, torch.Generator().manual_seed(0), 12
        ).as_json()["total_bpd"]
        for low in (False, True)
    ]
    assert totals[0] != totals[1]
    assert abs(totals[1] - totals[0]) < 0.01
