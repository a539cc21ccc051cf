"""Universal quantisation: q's mean and variance by uniform noise, at the cost of its law."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest, norm

from ddpm_codec.entropy import BitReader, BitWriter
from ddpm_codec.errors import ConfigError, Corrupt, Truncated
from ddpm_codec.relative_entropy import Dithered, Gaussian
from ddpm_codec.relative_entropy.dithered import CLASSES, MOST_DIFFERENCE, difference_law
from ddpm_codec.shared_randomness import SharedRandomness

DIMS = 4000
GROUPS = np.arange(DIMS) % 3
SIGMA = 0.3


def problem(spread, seed=0):
    """q with sigma SIGMA about means drawn `spread` sigma away from p's."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=DIMS)
    away = rng.normal(size=DIMS) * spread * SIGMA
    wide = SIGMA * np.sqrt(1 + spread**2)
    return Gaussian(mean + away, np.full(DIMS, SIGMA)), Gaussian(mean, np.full(DIMS, wide))


def encode(spread, seed=0):
    q, p = problem(spread)
    coder, writer, shared = Dithered(3, GROUPS, SIGMA), BitWriter(), SharedRandomness(seed, 1)
    coded = coder.encode(q, p, shared, 2, writer, np.random.default_rng(0))
    return coder, q, p, shared, coded, writer


@pytest.mark.parametrize("spread", [0.05, 1.0, 20.0])
def test_noise_is_uniform_with_qs_variance(spread):
    coder, q, p, shared, coded, writer = encode(spread)
    noise = (coded.sample - q.mean) / (SIGMA * np.sqrt(12))
    assert kstest(noise, "uniform", (-0.5, 1)).pvalue > 1e-4
    reader = BitReader(writer.getvalue(), writer.bits)
    np.testing.assert_array_equal(coder.decode(p, shared, 2, reader), coded.sample)
    assert reader.position == coded.spent_bits + coded.side_bits
    with pytest.raises(Truncated):
        coder.read(DIMS, BitReader(writer.getvalue(), writer.bits - 1))


@pytest.mark.parametrize("class_", [6, 16, 24])
def test_law_of_the_difference_by_quadrature(class_):
    """P(d) = E max(0, 1 - |m - d|) for m ~ N(0, g^2)."""
    g, law = 2.0 ** (class_ / 2 - 9), difference_law(class_)
    assert law.sum() == pytest.approx(1, abs=1e-12)
    for d in (0, 1, 3):

        def density(m, d=d):
            return norm.pdf(m, scale=g) * (1 - abs(m - d))

        expected = (
            quad(density, d - 1, d, epsabs=1e-14)[0] + quad(density, d, d + 1, epsabs=1e-14)[0]
        )
        assert law[MOST_DIFFERENCE + d] == pytest.approx(expected, rel=1e-6, abs=1e-11)
        assert law[MOST_DIFFERENCE - d] == law[MOST_DIFFERENCE + d]


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_cost_is_the_entropy_of_the_difference(spread):
    """Within 3 %: a spread of sigma is one of 1 / sqrt(12) cells; classes are half octaves."""
    coded = encode(spread)[4]
    g = spread / np.sqrt(12)
    m = norm.rvs(scale=g, size=200_000, random_state=0)
    d = np.floor(m + np.random.default_rng(1).random(200_000)).astype(int)
    share = np.bincount(d - d.min()) / len(d)
    entropy = -np.sum(share[share > 0] * np.log2(share[share > 0]))
    assert coded.spent_bits / DIMS == pytest.approx(entropy, rel=0.03)


def test_far_means_and_damage_are_refused():
    q, p = problem(1.0)
    far = Gaussian(q.mean + 2000 * SIGMA, q.std)
    with pytest.raises(ConfigError, match="too far"):
        Dithered(3, GROUPS, SIGMA).encode(
            far, p, SharedRandomness(0, 1), 0, BitWriter(), np.random.default_rng(0)
        )
    writer = BitWriter()
    for _ in range(3):
        writer.write(CLASSES - 1, 5)
    writer.write((1 << 20) + 1, 41)
    with pytest.raises(Corrupt, match="words"):
        Dithered(3, GROUPS, SIGMA).read(DIMS, BitReader(writer.getvalue()))
