"""Constant-rate stepping: the jump fills the block, and the coder says where it leads."""

import numpy as np
import pytest
import torch

from ddpm_codec.bound import step_kl_nats
from ddpm_codec.calibration import calibrate
from ddpm_codec.constant_rate import ConstantRate, choose_jump
from ddpm_codec.entropy import BitReader, BitWriter, Centred
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.relative_entropy.trellis import spent_bits
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.shared_randomness import SharedRandomness
from ddpm_codec.units import NATS_PER_BIT, from_uint8

from .test_trellis import problem


@pytest.mark.parametrize("rate_bits", [8, 40, 400])
def test_the_jump_fills_the_block(tiny, pixels, rate_bits):
    """The longest whose packet fits, to 6 %, among all that are possible."""
    many = pixels.repeat(20, 1, 1, 1)
    tiny.calibration = calibrate(tiny.model(), many, torch.Generator().manual_seed(0))
    model, x_0 = tiny.model(), from_uint8(pixels[:1])
    nodes = model.schedule.log_snr_grid(20)
    for t in (20, 12, 5):
        t_ = torch.tensor([t])
        x_t = model.q_sample(
            x_0, t_, torch.randn(x_0.shape, generator=torch.Generator().manual_seed(t))
        )
        step = ReverseStep(model, t_, x_t, model.estimate(x_t, t_))
        at = int(np.flatnonzero(nodes == t)[0])
        fits = []
        for jump, s in enumerate(nodes[at + 1 :], start=1):
            kl = float(step_kl_nats(model, step.estimate, x_0, t_, torch.tensor([int(s)])))
            if float(spent_bits(np.array(kl / NATS_PER_BIT), 8)) <= 1.06 * rate_bits:
                fits.append(jump)
        expected = max(fits, default=1)
        assert choose_jump(step, x_0, 3, nodes, rate_bits, 8) == expected


def test_packets_say_where_they_lead():
    q, p = problem(30, dims=128)
    shared, writer = SharedRandomness(0, 1), BitWriter()
    coder = ConstantRate(12, 6, 2, [9, 0, 0])
    coder.jump = 11
    coded = coder.encode(q, p, shared, 0, writer, np.random.default_rng(0))
    assert coded.spent_bits % 12 == 0
    reader = BitReader(writer.getvalue(), writer.bits)
    jump, blocks, *_ = coder.read(128, reader)
    assert (jump, (blocks + 1) * 12) == (11, coded.spent_bits)
    assert reader.position == coded.spent_bits + coded.side_bits
    reader = BitReader(writer.getvalue(), writer.bits)
    np.testing.assert_array_equal(coder.decode(p, shared, 0, reader), coded.sample)


def test_a_step_of_too_many_blocks_is_refused():
    """It was once cut to 4096 blocks, and fell short of q without a word."""
    q, p = problem(17_000, dims=2048)
    coder = ConstantRate(4, 6, 2, [9, 0, 0])
    with pytest.raises(ConfigError, match="larger --rate-bits"):
        coder.encode(q, p, SharedRandomness(0, 1), 0, BitWriter(), np.random.default_rng(0))


def test_damage_and_bad_parameters_are_refused():
    for rate_bits in (3, 1021):
        with pytest.raises(ConfigError):
            ConstantRate(rate_bits, 8, 2, [])
    writer = BitWriter()
    Centred(9, 1).write(writer, 0)
    with pytest.raises(Corrupt, match="nowhere"):
        ConstantRate(12, 6, 2, [9]).read(128, BitReader(writer.getvalue(), writer.bits))
