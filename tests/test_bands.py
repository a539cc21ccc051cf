"""The band transform: orthonormal, its own inverse's transpose, and the DCT of scipy."""

import numpy as np
import pytest
import torch
from scipy.fft import dct

from ddpm_codec.bands import (
    band_count,
    band_index,
    block_means,
    colour_matrix,
    from_bands,
    to_bands,
)

SHAPES = [(3, 32, 32), (3, 13, 8), (1, 1, 7), (2, 16, 3), (3, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_and_length(shape):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = to_bands(x)
    torch.testing.assert_close(from_bands(y), x, rtol=0, atol=1e-13)
    torch.testing.assert_close((y**2).sum(), (x**2).sum(), rtol=1e-13, atol=0)


def test_blocks_are_those_of_scipy():
    x = np.random.default_rng(0).normal(size=(1, 19, 21))
    ours = to_bands(torch.from_numpy(x)[None])[0, 0].numpy()
    for rows in (slice(0, 8), slice(8, 16), slice(16, 19)):
        for columns in (slice(0, 8), slice(8, 16), slice(16, 21)):
            block = dct(dct(x[0, rows, columns], axis=0, norm="ortho"), axis=1, norm="ortho")
            np.testing.assert_allclose(ours[rows, columns], block, atol=1e-13)


def test_luma_is_the_first_channel():
    matrix = colour_matrix(3)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=torch.float64))
    grey = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    y = to_bands(grey)
    assert y[0, 0, 0, 0] == pytest.approx(192**0.5)
    y[0, 0, 0, 0] = 0
    assert float(y.abs().max()) < 1e-12


def test_isotropic_noise_stays_isotropic():
    """What lets q be coded in bands: the covariance of W eps is that of eps."""
    basis = torch.eye(3 * 8 * 8, dtype=torch.float64).view(-1, 3, 8, 8)
    w = to_bands(basis).flatten(1)
    torch.testing.assert_close(w @ w.T, torch.eye(192, dtype=torch.float64), rtol=0, atol=1e-13)


def test_band_numbers():
    index = band_index(3, 16, 12)
    assert int(index.max()) == band_count(3) - 1
    assert index[0, 0, 0] == index[0, 8, 8] == 0
    assert index[2, 3, 5] == 2 * 64 + 3 * 8 + 5
    assert index[1, 8, 8:].tolist() == [64, 66, 68, 70]  # a block of 4: every other frequency


def test_block_means_count_partial_blocks_rightly():
    x = torch.zeros(1, 2, 11, 9)
    x[:, :, 8:, 8:] = 3.0
    x[0, 0, :8, :8] = 1.0
    means = block_means(x)[0, 0]
    assert means.shape == (11, 9)
    assert means[0, 0] == pytest.approx(0.5)
    assert means[10, 8] == pytest.approx(3.0)
    assert means[0, 8] == means[10, 0] == 0
