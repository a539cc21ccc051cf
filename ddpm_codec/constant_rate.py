"""Constant-rate stepping: the sender says where each step ends, and blocks all have R bits.

One network call gives the KL of jumping from t to every later node, so the sender takes the s
whose KL fills a block of R bits; where even the next node carries more, that step takes several
blocks. Easy pictures take fewer steps. A packet is the jump, in nodes, then the trellis's.
"""

from functools import cache

import numpy as np
import torch

from ddpm_codec.entropy import BitReader, BitWriter, Centred, EliasGamma
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.relative_entropy import Coded, Gaussian, Private, Trellis, kl_bits
from ddpm_codec.relative_entropy.trellis import spent_bits
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.schedule import Indices
from ddpm_codec.shared_randomness import Floats, SharedRandomness

LEAST_RATE, MOST_RATE = 4, 1020
RATE_UNIT = 4
"""The header holds R in units of this."""
_MOST_BLOCKS = 4096
_FIRST_JUMP, _JUMP_PARAMETER = 16, 1
_FULL = 1.06
"""A block of R bits may be asked for so much more than it delivers; the next step makes it up."""


@cache
def _sizes(rate_bits: int) -> tuple[int, ...]:
    return tuple(range(rate_bits, rate_bits * (_MOST_BLOCKS + 1), rate_bits))


class ConstantRate:
    """A trellis whose packets begin with a jump; `jump` is the one to send next.

    `rate_bits`: R, kappa and `previous`, the packet before ([] at first), are known to both sides.
    """

    def __init__(self, rate_bits: int, kappa: int, new_bits: int, previous: list[int]) -> None:
        if not LEAST_RATE <= rate_bits <= MOST_RATE:
            raise ConfigError(f"blocks of {rate_bits} bits: choose {LEAST_RATE} to {MOST_RATE}")
        self.trellis = Trellis(kappa, new_bits, _Blocks(), _sizes(rate_bits))
        self.jumps = Centred(previous[0] if previous else _FIRST_JUMP, _JUMP_PARAMETER)
        self.jump = 1

    def encode(
        self,
        q: Gaussian,
        p: Gaussian,
        shared: SharedRandomness,
        step: int,
        writer: BitWriter,
        private: Private,
    ) -> Coded:
        """The jump, then the step. ConfigError for one that would need too many blocks."""
        rate_bits, needed = self.trellis.sizes[0], float(kl_bits(q, p).sum())
        if needed > _MOST_BLOCKS * rate_bits:
            raise ConfigError(
                f"a step of {needed:.0f} bits: at most {_MOST_BLOCKS} blocks of {rate_bits} bits "
                "can follow each other; choose larger --rate-bits"
            )
        self.jumps.write(writer, self.jump)
        side = self.jumps.length_bits(self.jump)
        coded = self.trellis.encode(q, p, shared, step, writer, private)
        return Coded(
            coded.sample,
            coded.kl_bits,
            coded.spent_bits,
            coded.side_bits + side,
            coded.projection,
            coded.blocks,
        )

    def read(self, dims: int, reader: BitReader) -> list[int]:
        """The jump, the number of blocks less one, the words."""
        jump = self.jumps.read(reader)
        if jump < 1:
            raise Corrupt("a step that leads nowhere: the stream is damaged")
        return [jump, *self.trellis.read(dims, reader)]

    def sample(self, p: Gaussian, shared: SharedRandomness, step: int, packet: list[int]) -> Floats:
        """(D,) the sample that a packet names."""
        return self.trellis.sample(p, shared, step, packet[1:])

    def decode(self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader) -> Floats:
        """(D,) the sample: no search."""
        return self.sample(p, shared, step, self.read(p.dims, reader))


class _Blocks:
    """The number of blocks less one, under the Elias gamma code of the number."""

    def write(self, writer: BitWriter, value: int) -> None:
        EliasGamma().write(writer, value + 1)

    def read(self, reader: BitReader) -> int:
        return EliasGamma().read(reader) - 1

    def length_bits(self, value: int) -> int:
        return EliasGamma().length_bits(value + 1)


def choose_jump(
    step: ReverseStep, x_0: torch.Tensor, planes: int, nodes: Indices, rate_bits: int, kappa: int
) -> int:
    """The longest jump, in nodes, from the one image (1,C,H,W) of `step` whose packet fits into a
    block of `rate_bits`; 1 where none does. Only the first `planes` of the bands are coded."""
    at = int(np.flatnonzero(nodes == int(step.t[0]))[0])
    kl_bits, jump = step.kl_bits_to(x_0, planes), 0
    for s in nodes[at + 1 :]:
        if jump and float(spent_bits(np.array(kl_bits(s)), kappa)) > _FULL * rate_bits:
            break
        jump += 1
    return jump
