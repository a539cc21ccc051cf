"""The range coder of x_0 against the exact discretized decoder."""

from contextlib import suppress

import numpy as np
import pytest
import torch

from ddpm_codec.discretized import DiscretizedGaussian
from ddpm_codec.errors import Corrupt
from ddpm_codec.pixel_code import decode_pixels, encode_pixels


@pytest.fixture
def source():
    """(pixels, mean, std): draws of the decoder itself, means also outside [-1, 1]."""
    rng = np.random.default_rng(0)
    mean, std = rng.uniform(-1.1, 1.1, 20_000), np.exp(rng.uniform(-6, 0, 20_000))
    pixels = np.rint((mean + std * rng.normal(size=20_000) + 1) * 127.5).clip(0, 255)
    return pixels.astype(np.int32), mean, std


def test_round_trip(source):
    np.testing.assert_array_equal(decode_pixels(encode_pixels(*source), *source[1:]), source[0])


def test_length_is_minus_log_p_of_equation_13(source):
    """`constriction` adds 2^-24 to every probability; the rest is a word at the end."""
    pixels, mean, std = source
    log_p = DiscretizedGaussian(torch.from_numpy(mean), torch.from_numpy(std)).log_pmf_nats(
        torch.from_numpy(pixels)
    )
    p = log_p.exp().numpy() * (1 - 2.0**-16) + 2.0**-24
    expected = -np.log2(p).sum()
    assert abs(8 * len(encode_pixels(*source)) - expected) < 64 + 1e-4 * expected


def test_outliers_cost_at_most_24_bits_each():
    pixels = np.full(1000, 255, np.int32)
    mean, std = np.full(1000, -1.0), np.full(1000, 0.01)
    data = encode_pixels(pixels, mean, std)
    assert 8 * len(data) < 24.1 * 1000
    np.testing.assert_array_equal(decode_pixels(data, mean, std), pixels)


def test_partial_words_are_refused(source):
    with pytest.raises(Corrupt, match="words"):
        decode_pixels(encode_pixels(*source)[:-1], *source[1:])


def test_damaged_data_decodes_to_something_else_or_is_refused(source):
    data = bytearray(encode_pixels(*source))
    data[1000] ^= 1
    with suppress(Corrupt):
        assert not np.array_equal(decode_pixels(bytes(data), *source[1:]), source[0])
