"""The planned walk: the cheapest of all, by its own measure, and measured rightly."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm_codec.bound import step_kl_nats
from ddpm_codec.calibration import calibrate
from ddpm_codec.errors import ConfigError
from ddpm_codec.prefix import Nearby
from ddpm_codec.relative_entropy.trellis import FIRST_RANK, size_ranks, spent_bits
from ddpm_codec.stepping import StepTable, _side_bits, measure_steps, plan
from ddpm_codec.units import NATS_PER_BIT, from_uint8


@pytest.fixture
def model(tiny, pixels):
    many = pixels.repeat(20, 1, 1, 1)
    tiny.calibration = calibrate(tiny.model(), many, torch.Generator().manual_seed(0))
    return tiny.model()


@pytest.fixture
def table():
    """Twelve nodes, five pictures: KL with a price for long steps, some of them missing."""
    rng = np.random.default_rng(0)
    nodes = np.arange(12, 0, -1)
    kl = np.full((12, 12, 5), np.nan)
    for a in range(12):
        for b in range(a + 1, min(12, a + 7)):
            length = (b - a) * (1 + 0.15 * (b - a))
            kl[a, b] = 6 * (b + 1) * length * rng.lognormal(0, 0.5, size=5)
    return StepTable(nodes, 3072, kl, 4000.0 - 250 * np.arange(12)[:, None] * np.ones(5))


def cost(table, walk, kappa=16):
    """Bits of a walk over node numbers: words, and every size's code, one picture at a time."""
    total = 0.0
    for picture in range(table.kl_bits.shape[2]):
        before = FIRST_RANK
        for a, b in pairwise(walk):
            words = float(spent_bits(table.kl_bits[a, b, picture], kappa))
            rank = int(size_ranks(np.array(words)))
            total += words + Nearby(before).length_bits(rank)
            before = rank
    return total / table.kl_bits.shape[2]


def every_walk(table, end):
    for mask in range(1 << (end - 1)):
        inner = [node for node in range(1, end) if mask >> (node - 1) & 1]
        walk = [0, *inner, end]
        if all(np.isfinite(table.kl_bits[a, b, 0]) for a, b in pairwise(walk)):
            yield walk


@pytest.mark.parametrize(("end", "calls"), [(1, None), (4, None), (1, 4)])
def test_plan_is_the_best_of_all_walks(table, end, calls):
    """By brute force over every subset of the nodes."""
    found = plan(table, end=end, calls=calls)
    walk = [int(np.flatnonzero(table.nodes == t)[0]) for t in found.timesteps]
    walks = [w for w in every_walk(table, 12 - end) if calls is None or len(w) <= calls]
    best = min(cost(table, w) for w in walks)
    assert cost(table, walk) == pytest.approx(best)
    words = [spent_bits(table.kl_bits[a, b], 16).mean() / 3072 for a, b in pairwise(walk)]
    np.testing.assert_allclose(found.packet_bpd, words)


def test_a_size_far_from_the_one_before_is_counted_with_its_escape():
    """An escape is followed by the size in 8 bits, which the planner once left out."""
    for before in (0, 6, 60):
        for here in (0, 2, 6, 13, 30, 60, 90):
            counted = _side_bits(np.array([before]), np.array([here]))
            assert counted == Nearby(before).length_bits(here)


@pytest.mark.parametrize("end", [0, 12, 5000])
def test_an_end_outside_the_chain_is_refused(table, end):
    with pytest.raises(ConfigError, match="from 1 to 11"):
        plan(table, end=end)


def test_lossless_plan_ends_where_x_0_is_cheap(table):
    found = plan(table, lossless=True)
    walks = [(w, end) for end in range(1, 12) for w in every_walk(table, end)]
    best = min(cost(table, w) + table.x_0_bits[end].mean() for w, end in walks)
    walk = [int(np.flatnonzero(table.nodes == t)[0]) for t in found.timesteps]
    assert cost(table, walk) + table.x_0_bits[walk[-1]].mean() == pytest.approx(best)


def test_more_calls_than_nodes_cost_nothing(table):
    """The search once took time and memory for each of them."""
    np.testing.assert_array_equal(plan(table, calls=10**9).timesteps, plan(table).timesteps)


def test_too_few_calls_are_said(table):
    with pytest.raises(ConfigError, match="allow more"):
        plan(table, calls=2)


def test_measured_steps_are_the_bounds(model, pixels):
    """The table's KL against `step_kl_nats` on the same draws."""
    table = measure_steps(model, pixels, torch.Generator().manual_seed(0), nodes=6)
    generator = torch.Generator().manual_seed(0)
    x_0 = from_uint8(pixels)
    for at, t in enumerate(table.nodes):
        t_ = torch.full((len(x_0),), int(t))
        x_t = model.q_sample(x_0, t_, torch.randn(x_0.shape, generator=generator))
        estimate = model.estimate(x_t, t_)
        for to in range(at + 1, len(table.nodes)):
            s_ = torch.full_like(t_, int(table.nodes[to]))
            kl = step_kl_nats(model, estimate, x_0, t_, s_).numpy() / NATS_PER_BIT
            np.testing.assert_allclose(table.kl_bits[at, to], kl, rtol=1e-5)
        x_0_bits = model.decoder(estimate, t_).log_prob_nats(pixels).numpy() / -NATS_PER_BIT
        np.testing.assert_allclose(table.x_0_bits[at], x_0_bits, rtol=1e-6)


def test_no_calibration_is_said(tiny, pixels):
    with pytest.raises(ConfigError, match="calibrate"):
        measure_steps(tiny.model("beta_tilde"), pixels, torch.Generator())
