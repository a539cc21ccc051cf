"""Shared randomness: published and golden words, a scalar oracle, and the laws it must have."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri

import ddpm_codec
from ddpm_codec.errors import ConfigError
from ddpm_codec.shared_randomness import (
    ARRIVALS,
    CODEWORDS,
    DEAL,
    NORMAL_UNIT,
    QUANTILE_UNIT,
    SharedRandomness,
    block_address,
    normal_quantiles,
    philox,
)
from tests.oracles.philox import codeword_entry, long_word, philox4x32

LEVEL = 1e-5
# For seed 7 and version 1, computed by the scalar oracle.
GOLDEN_CODEWORD = [-20030, 3190, -32276, -18608, -42844, 30692, 1574, 11558, 1846, -31308]
GOLDEN_PERMUTATION = [10, 6, 11, 9, 3, 4, 5, 8, 7, 1, 2, 0]
GOLDEN_INTEGERS = [540, 142, 610, 826, 323, 196]
KNOWN_ANSWERS = [  # Random123's kat_vectors, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.fixture(scope="module")
def shared():
    return SharedRandomness(seed=12345, version=1)


@pytest.fixture(scope="module")
def many(shared):
    """(40000, 16) codewords in standard deviations."""
    return (
        shared.codewords(block_address(2, 3), np.arange(40_000), 16).astype(np.float64)
        * NORMAL_UNIT
    )


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, words):
    arrays = tuple(np.array([c], dtype=np.uint64) for c in counter)
    assert tuple(philox(arrays, key)[:, 0]) == words
    assert tuple(philox4x32(counter, key)) == words


def test_philox_agrees_with_the_scalar_oracle():
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 1 << 32, size=(4, 50), dtype=np.uint64)
    key = (0xDEADBEEF, 0xFFFFFFFF)
    vectorised = philox(tuple(counters), key)
    for i in range(50):
        assert philox4x32([int(c) for c in counters[:, i]], key) == vectorised[:, i].tolist()


def test_codewords_agree_with_the_scalar_oracle(shared):
    table = normal_quantiles().astype(int).tolist()
    block = block_address(65_535, 65_535)
    vectorised = shared.codewords(block, 1_000_003 + np.arange(3), 19)
    for i in range(3):
        for d in range(19):
            entry = codeword_entry(shared.key, table, block, 1_000_003 + i, d)
            assert vectorised[i, d] == entry


def test_long_words_agree_with_the_scalar_oracle(shared):
    for first, count in ((0, 5), (3, 4), (10, 1)):
        words = shared.long_words(ARRIVALS, 9, first, count).tolist()
        assert words == [long_word(shared.key, ARRIVALS, 9, first + i) for i in range(count)]


def test_golden_words_of_the_wire():
    """These may change with the format's version only."""
    shared = SharedRandomness(seed=7, version=1)
    assert (
        shared.codewords(block_address(1, 2), np.array([3]), 10)[0].astype(int).tolist()
        == GOLDEN_CODEWORD
    )
    assert shared.permutation(DEAL, block_address(1, 0), 12).tolist() == GOLDEN_PERMUTATION
    assert shared.integers(DEAL, 5, 6, 1000).tolist() == GOLDEN_INTEGERS


def test_the_table_is_the_shipped_one():
    file = Path(ddpm_codec.__file__).parent / "assets" / "normal_quantiles.npy"
    upper = np.load(file, allow_pickle=False)
    assert upper.dtype == np.dtype("<u2")
    assert upper.shape == (32_768,)
    digest = hashlib.sha256(upper.tobytes()).hexdigest()
    assert digest == "9d2e60a9d3605647fcba125f2a0dfaca4c7796ac5e880f54473ab9bc3d43fbf1"


def test_the_table_holds_normal_quantiles():
    table = normal_quantiles().astype(np.float64)
    exact = ndtri((np.arange(65_536) + 0.5) / 65_536) / QUANTILE_UNIT
    assert np.abs(table - exact).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(table, -table[::-1])
    x = table * QUANTILE_UNIT
    assert np.mean(x**2) == pytest.approx(1 - 2.06e-5, abs=1e-7)
    assert np.mean(x**4) == pytest.approx(3 - 8.77e-4, abs=1e-6)


def test_sums_of_eight_quantiles_are_exact_in_float32():
    assert 8 * normal_quantiles().max() < 1 << 24


def test_codewords_are_normal(many):
    assert stats.kstest(many.ravel(), "norm").pvalue > LEVEL
    for moment, exact, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = np.mean(many**moment) - exact
        assert abs(error) < 4.5 * np.sqrt(variance / many.size)


def test_tails_reach_beyond_the_table(shared):
    """8 M draws, of which 2.3 M sf(4.5) are expected: the table alone would give none."""
    draws = 0
    for first in range(0, 1_000_000, 100_000):
        z = shared.codewords(1, first + np.arange(100_000), 8)
        draws += int(np.sum(np.abs(z) * NORMAL_UNIT > 4.5))
    law = stats.poisson(8e6 * 2 * stats.norm.sf(4.5))
    assert law.ppf(LEVEL) <= draws <= law.isf(LEVEL)


def test_lanes_are_independent(many):
    """Correlations of values and of squares, within a Philox call and between calls."""
    for power in (1, 2):
        off_diagonal = np.corrcoef((many**power).T) - np.eye(16)
        assert np.abs(off_diagonal).max() < 5.5 / np.sqrt(len(many))
    neighbours = np.mean(many[1:] * many[:-1], axis=0)
    assert np.abs(neighbours).max() < 5 / np.sqrt(len(many))


def test_every_part_of_the_address_matters(shared):
    here = shared.words(CODEWORDS, 5, np.array([0]), slice(0, 1))
    others = [
        shared.words(DEAL, 5, np.array([0]), slice(0, 1)),
        shared.words(CODEWORDS, 6, np.array([0]), slice(0, 1)),
        shared.words(CODEWORDS, 5, np.array([1]), slice(0, 1)),
        shared.words(CODEWORDS, 5, np.array([0]), slice(1, 2)),
        SharedRandomness(12346, 1).words(CODEWORDS, 5, np.array([0]), slice(0, 1)),
        SharedRandomness(12345, 2).words(CODEWORDS, 5, np.array([0]), slice(0, 1)),
    ]
    assert all(not np.any(here == other) for other in others)


def test_random_access_doesnt_depend_on_what_was_read_together(shared):
    together = shared.codewords(4, np.arange(5_000), 20)
    for first, count, dims in ((0, 1, 1), (17, 3, 9), (4_999, 1, 20)):
        part = shared.codewords(4, first + np.arange(count), dims)
        np.testing.assert_array_equal(part, together[first : first + count, :dims])
    one = shared.normals(4, 17, 20)
    np.testing.assert_array_equal(one, together[17] * np.float64(NORMAL_UNIT))
    parts = [shared.uniforms(ARRIVALS, 4, first, 7) for first in (0, 7, 14)]
    np.testing.assert_array_equal(np.concatenate(parts), shared.uniforms(ARRIVALS, 4, 0, 21))


@pytest.mark.parametrize("memory_bytes", [0, 1 << 12, 1 << 24])
def test_candidates_are_the_codewords_whatever_is_remembered(memory_bytes):
    """Of one step or another, wider and narrower than before, with and without room."""
    shared = SharedRandomness(3, 1, memory_bytes)
    requests = [(0, 0, 700, 9), (0, 300, 5, 4), (0, 255, 300, 20), (1, 0, 1, 9), (0, 0, 300, 9),
                (0, 16_300, 40_000, 3), (1, 1_023, 2, 5), (1, 8_000, 8_500, 2)]  # fmt: skip
    for step in (0, 1, 0):
        for block, first, count, dims in requests:
            address = block_address(step, block)
            expected = shared.codewords(address, first + np.arange(count), dims)
            found = shared.candidates(address, first, count, dims)
            np.testing.assert_array_equal(found, expected)


def test_remembered_candidates_are_made_once_and_bounded(monkeypatch):
    made, codewords = [], SharedRandomness.codewords

    def counted(self, block, candidates, dims, *rest):
        made.append(len(candidates))
        return codewords(self, block, candidates, dims, *rest)

    monkeypatch.setattr(SharedRandomness, "codewords", counted)
    tile_bytes = 256 * 8 * 4
    shared = SharedRandomness(3, 1, 2 * tile_bytes)
    for _ in range(3):
        shared.candidates(block_address(0, 0), 0, 512, 8)
    assert made == [256, 256]
    shared.candidates(block_address(0, 1), 0, 256, 8)  # no room: made again each time
    shared.candidates(block_address(0, 1), 0, 256, 8)
    assert made == [256] * 4
    shared.candidates(block_address(0, 1), 300, 5, 8)  # once the whole tile, for five of it
    assert made.pop() == 5
    shared.candidates(block_address(1, 1), 0, 256, 8)  # another step: what was kept goes
    shared.candidates(block_address(1, 1), 0, 256, 8)
    assert made == [256] * 5


def test_uniforms_and_exponentials(shared):
    u = shared.uniforms(ARRIVALS, 0, 0, 50_000)
    assert 0 < u.min() < u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > LEVEL
    assert stats.kstest(shared.exponentials(ARRIVALS, 1, 0, 50_000), "expon").pvalue > LEVEL


def test_integers_are_uniform_and_bounded(shared):
    counts = np.bincount(shared.integers(DEAL, 3, 60_000, 6), minlength=6)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > LEVEL
    assert shared.integers(DEAL, 3, 10, 1).tolist() == [0] * 10


def test_permutations_are_uniform(shared):
    orders = [tuple(shared.permutation(DEAL, block, 4)) for block in range(4_800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > LEVEL
    assert sorted(shared.permutation(DEAL, 0, 3_072)) == list(range(3_072))


def test_blocks_of_different_steps_never_share_an_address():
    addresses = {block_address(step, block) for step in (0, 1, 65_535) for block in (0, 1, 65_535)}
    assert len(addresses) == 9
    assert max(addresses) < 1 << 32


@pytest.mark.parametrize(("seed", "version"), [(-1, 1), (1 << 32, 1), (0, -1), (0, 1 << 32)])
def test_keys_that_dont_fit_are_refused(seed, version):
    with pytest.raises(ConfigError, match="choose an integer"):
        SharedRandomness(seed, version)


@pytest.mark.parametrize(("step", "block"), [(-1, 0), (0, -1), (65_536, 0), (0, 65_536)])
def test_addresses_that_dont_fit_are_refused(step, block):
    with pytest.raises(ConfigError, match="65535"):
        block_address(step, block)


def test_an_empty_range_of_integers_is_refused(shared):
    with pytest.raises(ConfigError, match="bound"):
        shared.integers(DEAL, 0, 1, 0)
