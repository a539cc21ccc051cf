"""Max projection: of 2^k candidates the one with the largest density ratio, k raw bits.

With k chosen so that the expected largest of 2^k projections is q's mean, the sample has q's mean
along delta, next to no spread there, and p's law in every other direction. The search is over
every candidate, so blocks are small; `trellis` is the same with a structured codebook.
"""

from functools import cache

import numpy as np
from scipy.integrate import quad
from scipy.special import log_ndtr

from ddpm_codec.entropy import BitReader, BitWriter, IntegerCode
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.prefix import Nearby
from ddpm_codec.relative_entropy.protocol import (
    Coded,
    Gaussian,
    LogRatio,
    Private,
    assemble,
    deal,
    kl_bits,
    log_weights,
    projection,
    send,
)
from ddpm_codec.relative_entropy.trellis import FIRST_RANK, SIZES
from ddpm_codec.shared_randomness import BLOCKS_A_STEP, Floats, SharedRandomness, block_address

MOST_BLOCK_BITS = 20


@cache
def effective_bits(k: int) -> float:
    """m^2 / (2 ln 2), m the mean of the largest of 2^k standard normal variates:

    m = integral of x 2^k phi(x) Phi(x)^(2^k - 1) dx.
    """
    n = 2.0**k

    def density(x: float) -> float:
        log = np.log(n) - 0.5 * (x * x + np.log(2 * np.pi)) + (n - 1) * log_ndtr(x)
        return float(x * np.exp(log))

    mean = quad(density, -9.0, 12.0, limit=200, points=[0.0, (2 * np.log(n + 1)) ** 0.5])[0]
    return float(mean**2 / (2 * np.log(2)))


def block_sizes(size: int, k: int) -> list[int]:
    """The bits of each block of a packet of `size` bits: as even as can be, none above k."""
    blocks = -(-size // k)
    return [size * (i + 1) // blocks - size * i // blocks for i in range(blocks)]


class MaxProjection:
    """Blocks of at most k bits. `rank` codes the place of a packet's bits in `trellis.SIZES`; k
    and `rank` belong to the header."""

    def __init__(self, k: int = 12, rank: IntegerCode | None = None) -> None:
        if not 1 <= k <= MOST_BLOCK_BITS:
            raise ConfigError(f"blocks of {k} bits: choose 1 to {MOST_BLOCK_BITS}")
        self.k = k
        self.rank = rank or Nearby(FIRST_RANK)

    def packet_rank(self, total_bits: float, dims: int) -> int:
        """The place in `SIZES` whose blocks' effective bits come nearest to a step's KL."""
        most = min(self.k * min(dims, BLOCKS_A_STEP), 64 * (int(total_bits) + 1))
        sizes = [size for size in SIZES if size <= most] or [1]
        effective = [sum(map(effective_bits, block_sizes(n, self.k))) for n in sizes]
        return int(np.argmin(np.abs(np.array(effective) - total_bits)))

    def encode(
        self,
        q: Gaussian,
        p: Gaussian,
        shared: SharedRandomness,
        step: int,
        writer: BitWriter,
        private: Private,
    ) -> Coded:
        """One step; nothing in it is private."""
        total = float(kl_bits(q, p).sum())
        rank, message = self.packet_rank(total, q.dims), BitWriter()
        self.rank.write(message, rank)
        side, sizes = message.bits, block_sizes(SIZES[rank], self.k)
        for block, dims in enumerate(deal(shared, step, q.dims, len(sizes))):
            ratio = LogRatio.of(q.at(dims), p.at(dims))
            weights = log_weights(ratio, shared, block_address(step, block), 1 << sizes[block])
            message.write(int(np.argmax(weights)), sizes[block])
        x = send(self, p, shared, step, message, writer)
        return Coded(x, total, message.bits - side, side, projection(q, p, x), len(sizes))

    def read(self, dims: int, reader: BitReader) -> list[int]:
        """One index a block."""
        rank = self.rank.read(reader)
        if rank >= len(SIZES) or SIZES[rank] > self.k * min(dims, BLOCKS_A_STEP):
            raise Corrupt(f"a packet of size {rank} for {dims} dimensions: the stream is damaged")
        return [rank, *(reader.read(bits) for bits in block_sizes(SIZES[rank], self.k))]

    def sample(self, p: Gaussian, shared: SharedRandomness, step: int, packet: list[int]) -> Floats:
        """(D,) the sample that the indices name."""
        return assemble(p, shared, step, packet[1:])

    def decode(self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader) -> Floats:
        """(D,) the sample: no search."""
        return self.sample(p, shared, step, self.read(p.dims, reader))
