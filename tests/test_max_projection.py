"""Max projection: the closed form of its overhead, and what it delivers."""

import numpy as np
import pytest
from scipy.stats import kstest

from ddpm_codec.entropy import BitReader, BitWriter
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.relative_entropy import MaxProjection
from ddpm_codec.relative_entropy.max_projection import block_sizes, effective_bits
from ddpm_codec.relative_entropy.trellis import SIZES
from ddpm_codec.shared_randomness import SharedRandomness

from .test_trellis import problem


@pytest.mark.parametrize("k", [1, 4, 10])
def test_effective_bits_against_simulation(k):
    largest = np.random.default_rng(0).normal(size=(4000, 1 << k)).max(axis=1)
    mean, error = largest.mean(), largest.std() / 4000**0.5
    expected = np.sqrt(2 * np.log(2) * effective_bits(k))
    assert abs(mean - expected) < 4.5 * error


def test_effective_bits_of_one_and_two_candidates():
    assert effective_bits(0) == pytest.approx(0, abs=1e-12)
    assert effective_bits(1) == pytest.approx(1 / np.pi / (2 * np.log(2)), rel=1e-9)


def test_overhead_is_the_documented_one():
    """78, 39, 26.5, 20.5 and 16.8 % at 4, 8, 12, 16 and 20 bits."""
    overhead = [100 * (k / effective_bits(k) - 1) for k in (4, 8, 12, 16, 20)]
    np.testing.assert_allclose(overhead, [78, 39, 26.5, 20.5, 16.8], atol=0.6)


@pytest.mark.parametrize("kl_bits", [3, 12, 60])
def test_mean_is_matched_and_the_receiver_agrees(kl_bits):
    """Over 40 steps: projection 1 but for the steps of a quarter between sizes."""
    coder, projections, across = MaxProjection(8), [], []
    for step in range(40):
        q, p = problem(kl_bits, dims=256, seed=step)
        writer = BitWriter()
        shared = SharedRandomness(step, 1)
        coded = coder.encode(q, p, shared, 1, writer, np.random.default_rng(0))
        reader = BitReader(writer.getvalue(), writer.bits)
        np.testing.assert_array_equal(coder.decode(p, shared, 1, reader), coded.sample)
        assert reader.position == coded.spent_bits + coded.side_bits
        projections.append(coded.projection)
        delta, z = q.mean - p.mean, coded.sample - p.mean
        other = np.random.default_rng(step).normal(size=256)
        other -= delta * (other @ delta) / (delta @ delta)
        across.append(z @ other / np.linalg.norm(other))
    error = np.std(projections, ddof=1) / 40**0.5
    assert abs(np.mean(projections) - 1) < 0.12 + 4.5 * error
    assert kstest(across, "norm").pvalue > 1e-4


def test_blocks_are_even_and_never_above_k():
    for size in (1, 7, 8, 9, 100):
        blocks = block_sizes(size, 8)
        assert sum(blocks) == size
        assert max(blocks) <= 8
        assert max(blocks) - min(blocks) <= 1


def test_damage_and_bad_parameters_are_refused():
    with pytest.raises(ConfigError):
        MaxProjection(21)
    writer = BitWriter()
    MaxProjection(8).rank.write(writer, len(SIZES))
    with pytest.raises(Corrupt):
        MaxProjection(8).read(24, BitReader(writer.getvalue()))
