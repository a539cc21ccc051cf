"""The planned walk: the cheapest of all, by its own measure."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm_codec.calibration import calibrate
from ddpm_codec.errors import ConfigError
from ddpm_codec.stepping import expected_step_bits, plan


@pytest.fixture
def model(tiny, pixels):
    many = pixels.repeat(20, 1, 1, 1)
    tiny.calibration = calibrate(tiny.model(), many, torch.Generator().manual_seed(0))
    return tiny.model()


@pytest.mark.parametrize("step_bits", [0.01, 1.0, 8.0])
def test_plan_beats_every_walk_it_did_not_choose(model, step_bits):
    bits = expected_step_bits(model, 192)

    def cost(walk):
        return sum(bits[t, s] + step_bits for t, s in pairwise(walk))

    best = cost(plan(model, 192, step_bits).timesteps.tolist())
    rng = np.random.default_rng(0)
    for _ in range(2000):
        inner = np.flatnonzero(rng.random(18) < rng.random()) + 2
        assert best <= cost([20, *inner[::-1].tolist(), 1]) + 1e-9


def test_dearer_steps_make_fewer(model):
    lengths = [plan(model, 192, bits).steps for bits in (0.0, 0.1, 1.0, 1e6)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 1


def test_no_calibration_is_said(tiny):
    with pytest.raises(ConfigError, match="calibrate"):
        plan(tiny.model("beta_tilde"), 192)
