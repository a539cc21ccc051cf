"""Numbers on which machines agree: float64 sums, rounded."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ddpm_codec.exact import rounded, shifted_sum
from ddpm_codec.layers import Conv

from .conftest import TINY, random_checkpoint


@pytest.mark.parametrize(
    ("stride", "padding", "groups", "kernel"),
    [
        (1, 1, 1, 3),
        (2, 0, 1, 3),
        (2, 1, 1, 3),
        (1, 0, 1, 1),
        (2, 0, 1, 1),
        (1, 0, 6, 1),
        (1, 1, 6, 3),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_shifted_sum_is_a_convolution(stride, padding, groups, kernel, bias):
    """Oracle: torch's own convolution, also through the module that the networks are made of."""
    torch.manual_seed(0)
    conv = Conv(6, 6, kernel, stride, padding, groups=groups, bias=bias).double()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    expected = F.conv2d(x, conv.weight, conv.bias, stride, padding, groups=groups)
    assert torch.allclose(
        shifted_sum(x, conv.weight, conv.bias, stride, padding), expected, atol=1e-12
    )
    assert torch.allclose(conv(x), expected, atol=1e-12)
    assert torch.equal(conv.float()(x.float()), nn.Conv2d.forward(conv, x.float()))


def test_network_in_float64():
    """The float64 network is the float32 one, to float32's rounding, and really in float64."""
    source = random_checkpoint(TINY)
    x, t = torch.randn(2, 3, 9, 8), torch.tensor([3, 20])
    single = source.model("beta").estimate(x, t).x_0_hat
    double = source.model("beta", float64=True).estimate(x.double(), t).x_0_hat
    assert double.dtype == torch.float64
    error = (single - double).abs().max() / double.abs().max()
    assert 0 < error < 1e-5


def test_rounded():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=1000), np.exp(rng.normal(0, 5, 1000))
    near_mean, near_std = rounded(mean, std, 2.0**-6)
    assert np.abs(near_mean - mean).max() <= 2.0**-7
    assert np.array_equal(near_mean * 64, np.rint(near_mean * 64))
    assert np.abs(near_std / std - 1).max() <= 1 / 256
    assert (np.abs(near_std / std - 1) > 1 / 1024).any()
    again = rounded(near_mean, near_std, 2.0**-6)
    assert np.array_equal(again[0], near_mean)
    assert np.array_equal(again[1], near_std)
    nudged = rounded(mean * (1 + 1e-15), std * (1 - 1e-15), 2.0**-6)
    assert np.array_equal(nudged[0], near_mean)
    assert np.array_equal(nudged[1], near_std)
