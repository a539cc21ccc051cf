"""The trellis: the best of all paths, q's mean, and p in every other direction."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import kstest

from ddpm_codec.entropy import BitReader, BitWriter
from ddpm_codec.errors import ConfigError, Corrupt, Truncated
from ddpm_codec.relative_entropy import Gaussian, Trellis
from ddpm_codec.relative_entropy.trellis import (
    LEAST_KAPPA,
    SIZES,
    path_word,
    size_ranks,
    spent_bits,
    word_path,
)
from ddpm_codec.relative_entropy.trellis_search import hashed, stage_edges, viterbi
from ddpm_codec.shared_randomness import SharedRandomness

SHARED = SharedRandomness(0, 1)


def problem(kl_bits, dims=512, rho=1.0, seed=0):
    """(q, p) with that KL; `rho` = sigma_p / sigma_q, the shift uneven over the dimensions."""
    rng = np.random.default_rng(seed)
    delta = rng.normal(size=dims) * np.exp(0.5 * rng.normal(size=dims))
    spread = dims * (0.5 * (1 / rho**2 - 1) + np.log(rho)) / np.log(2)
    delta *= rho * np.sqrt(2 * np.log(2) * (kl_bits - spread) / (delta @ delta))
    mean = rng.normal(size=dims)
    return Gaussian(mean + delta, np.ones(dims)), Gaussian(mean, np.full(dims, rho))


def encode(coder, q, p, step):
    writer = BitWriter()
    return coder.encode(q, p, SHARED, step, writer, np.random.default_rng(0)), writer


@pytest.mark.parametrize("new_bits", [1, 2, 3])
@pytest.mark.parametrize("first_bits", [3, 4])
def test_viterbi_finds_the_best_path_of_all(new_bits, first_bits):
    """Against brute force over every word of a small trellis."""
    kappa, stages = 4, 3
    metric = np.random.default_rng(0).normal(size=(stages + 1, 16)).astype(np.float32)
    words = range(1 << (first_bits + new_bits * stages))
    totals = [
        sum(metric[i, row] for i, row in enumerate(word_path(w, stages, kappa, new_bits)))
        for w in words
    ]
    path = viterbi(iter(metric), kappa, first_bits, new_bits)
    word = path_word(path, new_bits)
    assert word == int(np.argmax(totals))
    assert word_path(word, stages, kappa, new_bits) == path


@pytest.mark.parametrize("dims", [24, 600])
def test_search_maximises_the_density_ratio(dims):
    """The sample of the encoder against every sample that its packet could name; wide stages go on
    with hashed rows."""
    q, p = problem(6.0, dims=dims, rho=1.02)
    coder = Trellis(4)
    coded, writer = encode(coder, q, p, 3)
    [rank, _] = coder.read(dims, BitReader(writer.getvalue(), writer.bits))
    assert 6 <= coded.spent_bits <= 12

    def log_ratio(x):
        return -0.5 * np.sum(((x - q.mean) / q.std) ** 2 - ((x - p.mean) / p.std) ** 2)

    every = [
        log_ratio(coder.sample(p, SHARED, 3, [rank, word])) for word in range(1 << coded.spent_bits)
    ]
    assert log_ratio(coded.sample) == pytest.approx(max(every), rel=1e-4)


@pytest.mark.parametrize("kl_bits", [0.2, 3, 20, 100, 700])
@pytest.mark.parametrize("rho", [1.0, 1.1])
def test_what_is_decoded_is_what_was_encoded(kl_bits, rho):
    rho = 1.0 if kl_bits < 20 else rho
    q, p = problem(kl_bits, rho=rho)
    coder = Trellis(10)
    coded, writer = encode(coder, q, p, 1)
    assert coded.spent_bits + coded.side_bits == writer.bits
    reader = BitReader(writer.getvalue(), writer.bits)
    np.testing.assert_array_equal(coder.decode(p, SHARED, 1, reader), coded.sample)
    assert reader.position == writer.bits
    with pytest.raises(Truncated):
        coder.decode(p, SHARED, 1, BitReader(writer.getvalue(), writer.bits - 1))


@pytest.mark.parametrize(("kl_bits", "most"), [(20, 0.35), (60, 0.25), (200, 0.2)])
def test_mean_is_matched_at_a_small_overhead(kl_bits, most):
    """Projection 1 within 6 %, and spent over effective bits, over 30 blocks."""
    coder, projections, spent = Trellis(12), [], []
    for step in range(30):
        q, p = problem(kl_bits, dims=1024, seed=step)
        coded, _ = encode(coder, q, p, step)
        projections.append(coded.projection)
        spent.append(coded.spent_bits)
    mean, error = np.mean(projections), np.std(projections, ddof=1) / np.sqrt(30)
    assert abs(mean - 1) < 0.06 + 4.5 * error
    assert np.mean(spent) / (kl_bits * mean**2) - 1 < most


def test_across_the_shift_the_sample_is_standard_normal():
    """Kolmogorov-Smirnov over directions orthogonal to delta, 20 blocks of 1024 dimensions."""
    coder, across = Trellis(10), []
    for step in range(20):
        q, p = problem(40, dims=1024, seed=step)
        coded, _ = encode(coder, q, p, step)
        delta, z = q.mean - p.mean, coded.sample - p.mean
        unit = delta / np.linalg.norm(delta)
        basis = np.random.default_rng(step).normal(size=(100, 1024))
        basis -= np.outer(basis @ unit, unit)
        # The projections of one block share its randomness, but 100 of 1024 hardly correlate.
        across.append(np.linalg.qr(basis.T)[0].T @ z)
    assert kstest(np.concatenate(across), "norm").pvalue > 1e-4


def test_rows_are_hashed_one_to_one():
    rows = np.arange(1 << 10)
    np.testing.assert_array_equal(hashed(rows, 0, 10), rows)
    for copy in (1, 2, 47):
        assert len(np.unique(hashed(rows, copy, 10))) == 1 << 10


def test_stages_share_the_dimensions_out():
    for first, stages, dims in product((1, 9, 16), (0, 1, 300), (24, 3072)):
        edges = stage_edges(dims, first, stages, 2)
        assert (edges[0], edges[-1], len(edges)) == (0, dims, stages + 2)
        assert np.all(np.diff(edges) >= 0)


def test_packets_of_several_blocks():
    """5000 bits do not fit in one block of 2048."""
    q, p = problem(5000, dims=6000)
    coder = Trellis(6)
    coded, writer = encode(coder, q, p, 0)
    assert coded.blocks >= 3
    reader = BitReader(writer.getvalue(), writer.bits)
    np.testing.assert_array_equal(coder.decode(p, SHARED, 0, reader), coded.sample)


def test_sizes_are_the_nearest_by_ratio():
    for bits in (0.1, 1.0, 7.4, 100.0, 1e5):
        ratios = np.abs(np.log(np.array(SIZES) / max(bits, 1.0)))
        assert ratios[size_ranks(np.array(bits))] == pytest.approx(ratios.min())


def test_longer_packets_and_registers_cost_less_a_bit():
    kl = np.array([1.0, 4, 16, 64, 256, 1024, 4096])
    overheads = [spent_bits(kl, kappa) / kl - 1 for kappa in (12, 16, 18)]
    assert all(np.all(np.diff(o) <= 0) and np.all(o > 0) for o in overheads)
    assert np.all(overheads[0][4:] > overheads[1][4:])
    assert np.all(overheads[1][4:] > overheads[2][4:])


def test_damage_and_bad_parameters_are_refused():
    for kappa, new_bits in ((LEAST_KAPPA - 1, 2), (19, 2), (8, 0), (8, 5)):
        with pytest.raises(ConfigError):
            Trellis(kappa, new_bits)
    writer = BitWriter()
    Trellis(8).rank.write(writer, len(SIZES))
    with pytest.raises(Corrupt):
        Trellis(8).read(24, BitReader(writer.getvalue()))
