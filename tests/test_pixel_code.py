"""The range coder of x_0 against the exact discretized decoder."""

from contextlib import suppress

import numpy as np
import pytest
import torch

from ddpm_codec.discretized import DiscretizedGaussian
from ddpm_codec.errors import Corrupt
from ddpm_codec.pixel_code import decode_pixels, encode_pixels

SHAPE = (1, 1, 100, 200)


@pytest.fixture
def source():
    """Pixels and the decoder that they are draws of, its means also outside [-1, 1]."""
    rng = np.random.default_rng(0)
    mean, std = rng.uniform(-1.1, 1.1, SHAPE), np.exp(rng.uniform(-6, 0, SHAPE))
    pixels = np.rint((mean + std * rng.normal(size=SHAPE) + 1) * 127.5).clip(0, 255)
    decoder = DiscretizedGaussian(torch.from_numpy(mean), torch.from_numpy(std))
    return torch.from_numpy(pixels.astype(np.uint8)), decoder


def test_round_trip(source):
    pixels, decoder = source
    assert torch.equal(decode_pixels(encode_pixels(*source), decoder, SHAPE), pixels)


def test_length_is_minus_log_p_of_equation_13(source):
    """`constriction` adds 2^-24 to every probability; the rest is a word at the end."""
    pixels, decoder = source
    p = decoder.log_pmf_nats(pixels).exp().numpy() * (1 - 2.0**-16) + 2.0**-24
    expected = -np.log2(p).sum()
    assert abs(8 * len(encode_pixels(*source)) - expected) < 64 + 1e-4 * expected


def test_outliers_cost_at_most_24_bits_each():
    pixels = torch.full((1, 1, 1, 1000), 255, dtype=torch.uint8)
    decoder = DiscretizedGaussian(torch.full(pixels.shape, -1.0), torch.tensor(0.01))
    data = encode_pixels(pixels, decoder)
    assert 8 * len(data) < 24.1 * 1000
    assert torch.equal(decode_pixels(data, decoder, pixels.shape), pixels)


def test_partial_words_are_refused(source):
    with pytest.raises(Corrupt, match="words"):
        decode_pixels(encode_pixels(*source)[:-1], source[1], SHAPE)


def test_damaged_data_decodes_to_something_else_or_is_refused(source):
    data = bytearray(encode_pixels(*source))
    data[1000] ^= 1
    with suppress(Corrupt):
        assert not torch.equal(decode_pixels(bytes(data), source[1], SHAPE), source[0])
