"""Bits back: what is pushed is popped, at the cost of the chain's bound."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from ddpm_codec.bands import to_bands
from ddpm_codec.bits_back import BitsBack, Stack, ladder
from ddpm_codec.bound import evaluate_bound
from ddpm_codec.calibration import calibrate
from ddpm_codec.errors import ConfigError
from ddpm_codec.units import from_uint8

from .conftest import TINY, random_checkpoint, smooth_pictures

STEPS = 6


@pytest.fixture(scope="module")
def pictures():
    return smooth_pictures(64)


@pytest.fixture(scope="module")
def source(pictures):
    source = random_checkpoint(TINY)
    source.calibration = calibrate(source.model(), pictures, torch.Generator().manual_seed(0))
    return source


@pytest.fixture(scope="module")
def coder(source):
    model = source.model("calibrated", float64=True)
    return BitsBack(model, model.schedule.log_snr_grid(STEPS))


def random_stack(words=4096, seed=0):
    return Stack(np.random.default_rng(seed).integers(0, 1 << 32, words, dtype=np.uint32))


def test_a_stack_gives_back_what_it_took():
    stack, rng = random_stack(), np.random.default_rng(1)
    before = stack.words()
    mean, std = rng.normal(0, 1e5, 500), np.exp(rng.normal(2, 0.5, 500))
    values = stack.pop(mean, std, 512)
    stack.push(values, mean, std, 512)
    assert np.array_equal(stack.words(), before)
    with pytest.raises(KeyError):
        stack.push(values + 1024, mean, std, 512)


def test_pops_are_draws_of_the_gaussian():
    mean, std = np.full(20_000, 0.3), np.full(20_000, 10.0)
    values = random_stack(10_000).pop(mean, std, 128)
    smeared = values + np.random.default_rng(0).uniform(-0.5, 0.5, values.size)
    assert kstest((smeared - mean) / std, "norm").pvalue > 1e-3


@pytest.mark.parametrize("grey", [False, True])
def test_pop_undoes_push(coder, pictures, grey):
    """Also the stack itself: what was drawn comes back, bit by bit."""
    pictures = pictures[:3, :1].expand(3, 3, 8, 8).contiguous() if grey else pictures[:3]
    stack = random_stack()
    before = stack.words()
    for picture in pictures:
        coder.push(stack, picture, grey)
    again = Stack(stack.words(), sealed=False)
    for picture in pictures.flip(0):
        assert torch.equal(coder.pop(again, (8, 8), grey), picture)
    assert np.array_equal(again.words(), before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 7)])
def test_sides_of_any_length(coder, shape):
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, *shape), generator=generator).to(torch.uint8)
    stack = random_stack()
    coder.push(stack, picture)
    assert torch.equal(coder.pop(stack, shape), picture)


def test_a_picture_costs_the_bound_of_the_chain(coder, source, pictures):
    """Oracle: the K-step bound, by exact KLs and with noise of its own. The grid's cells and the
    rounded parameters cost less than 0.2 %."""
    model = source.model("calibrated")
    bounds = [
        evaluate_bound(model, pictures, torch.Generator().manual_seed(seed), steps=STEPS)
        for seed in range(4)
    ]
    bound = np.mean([bound.total_nats for bound in bounds], axis=0) / np.log(2)
    stack, bits = random_stack(), []
    for picture in pictures:
        before = stack.bits
        coder.push(stack, picture)
        bits.append(stack.bits - before)
    excess = np.array(bits) - bound
    sem = excess.std(ddof=1) / len(bits) ** 0.5
    assert sem < 0.02 * bound.mean()
    assert abs(excess.mean()) < 4 * sem + 0.002 * bound.mean()


def test_grey_costs_one_plane(coder, pictures):
    """The chroma of a known x_0 comes back at no cost but that of L_T."""
    grey = pictures[:8, :1].expand(8, 3, 8, 8).contiguous()
    costs = []
    for known in (False, True):
        stack = random_stack()
        before = stack.bits
        for picture in grey:
            coder.push(stack, picture, known)
        costs.append(stack.bits - before)
    assert costs[1] < 0.6 * costs[0]


def test_a_picture_that_p_does_not_hold(source, pictures):
    """A model far too sure of itself: p's support is widened, and beyond that it is an error which
    leaves the stack as it was."""
    model = source.model("calibrated", float64=True)
    assert model.calibration is not None
    grid = model.schedule.log_snr_grid(STEPS)
    tables = replace(model.calibration, x_0_mse=1e-12 * model.calibration.x_0_mse)
    sure = replace(model, calibration=tables)
    far = (255 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(3))).to(torch.uint8)
    coder, stack = BitsBack(sure, grid), random_stack()
    before = stack.words()
    coder.push(stack, far)
    assert torch.equal(coder.pop(stack, (8, 8)), far)
    assert np.array_equal(stack.words(), before)
    lost = replace(model, denoiser=lambda x, t: type(model.denoiser(x, t))(x * float("nan"), x))
    with pytest.raises(ConfigError, match="finite"):
        BitsBack(lost, grid).push(stack, far)


def test_drawn_x_t_have_the_forward_process(coder, source, pictures):
    """x_1 given x_0: mean sqrt(alpha_bar_1) x_0, variance 1 - alpha_bar_1, to the cell's width."""
    lowest = ladder(coder.model, coder.model.schedule.log_snr_grid(STEPS))[0]
    alpha_bar = coder.model.schedule.alpha_bar[1]
    assert lowest.weight**2 == pytest.approx(alpha_bar)
    assert lowest.std**2 == pytest.approx(1 - alpha_bar)
    x_0 = to_bands(from_uint8(pictures).double()).flatten().numpy()
    mean, std = lowest.weight * x_0 / lowest.unit, np.full(x_0.size, lowest.std / lowest.unit)
    cells = random_stack(20_000).pop(mean, std, lowest.reach)
    z = (lowest.values(cells) - lowest.weight * x_0) / lowest.std
    smeared = z + np.random.default_rng(0).uniform(-0.5, 0.5, z.size) * lowest.unit / lowest.std
    assert kstest(smeared / (1 + (lowest.unit / lowest.std) ** 2 / 12) ** 0.5, "norm").pvalue > 1e-3


def test_x_0_is_in_float64(coder, pictures):
    """Its coordinates were once summed in float32: under other instructions (MKL_CBWR=COMPATIBLE) a
    mean of x_1 then rounded to the other side somewhere, and the rest of the archive was lost."""
    x_0 = coder._flat(pictures[0])
    exact = to_bands(from_uint8(pictures[:1]).double()).flatten().numpy()
    assert np.abs(to_bands(from_uint8(pictures[:1])).flatten().numpy() - exact).max() > 0
    assert np.abs(x_0 - exact).max() < 1e-12
