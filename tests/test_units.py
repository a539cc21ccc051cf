"""Units: their inverses and their anchors."""

import math

import numpy as np
import torch

from ddpm_codec.units import (
    from_uint8,
    nats_to_bits,
    nats_to_bpd,
    rmse_to_psnr_db,
    to_uint8,
)


def test_pixels_round_trip_and_reach_both_ends():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(pixels)
    assert (x[0], x[-1]) == (-1, 1)
    torch.testing.assert_close(to_uint8(x), pixels)
    torch.testing.assert_close(to_uint8(torch.tensor([-3.0, 3.0])), pixels[[0, -1]])


def test_nats_to_bits():
    assert nats_to_bits(math.log(8)) == 3
    assert nats_to_bpd(math.log(8), 3) == 1


def test_psnr_is_20_log10_of_255_over_rmse():
    assert rmse_to_psnr_db(255.0) == 0
    assert rmse_to_psnr_db(0.255) == 60
    assert rmse_to_psnr_db(0.0) == math.inf
    np.testing.assert_allclose(rmse_to_psnr_db(torch.tensor([25.5])), 20)
