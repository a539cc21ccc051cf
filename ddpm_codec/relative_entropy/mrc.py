"""Minimal random coding (Havasi, Peharz & Hernandez-Lobato 2019): k bits a block, flat.

From K = 2^k candidates of p one is drawn with probability w_i / sum w. The sample is biased:
its law is that of self-normalised importance sampling, which under-delivers where the KL of
the block comes near k (along delta the mean falls short by 0.3 standard deviations for 4
bits at k = 8, by 0.65 for 14 bits at k = 16).
"""

import numpy as np

from ddpm_codec.entropy import BitReader, BitWriter, EliasGamma, IntegerCode
from ddpm_codec.errors import ConfigError
from ddpm_codec.relative_entropy.protocol import (
    Coded,
    Gaussian,
    LogRatio,
    Private,
    assemble,
    blocks_needed,
    check_count,
    deal,
    kl_bits,
    log_weights,
    projection,
    read_blocks,
    send,
)
from ddpm_codec.shared_randomness import Floats, SharedRandomness, block_address

MOST_INDEX_BITS = 24


def check_search(k: int, overshoot_bits: float) -> None:
    """ConfigError unless 1 <= k <= 24 and a block of k bits can carry some KL."""
    if not 1 <= k <= MOST_INDEX_BITS:
        raise ConfigError(f"blocks of {k} bits: choose 1 to {MOST_INDEX_BITS}")
    if not overshoot_bits < k:
        raise ConfigError(
            f"{overshoot_bits} bits of overshoot in blocks of {k} bits leave nothing to carry: "
            "choose fewer"
        )


def search(
    q: Gaussian, p: Gaussian, shared: SharedRandomness, step: int, arrivals: list[Floats]
) -> list[int]:
    """The candidate of each block with the least arrival_i / w_i; arrivals (K,), one a block.

    Where the arrivals are K exponential variates in an order that is independent of the
    candidates, candidate i wins with probability w_i / sum w given the candidates.
    """
    indices = []
    for block, dims in enumerate(deal(shared, step, q.dims, len(arrivals))):
        ratio = LogRatio.of(q.at(dims), p.at(dims))
        times = arrivals[block]
        weights = log_weights(ratio, shared, block_address(step, block), len(times))
        indices.append(int(np.argmin(np.log(times) - weights)))
    return indices


class MinimalRandomCoding:
    """K = 2^k candidates a block.

    `overshoot_bits`: of a block's k bits, those kept above its share of the KL, so that a step
    has ceil(KL / (k - overshoot)) blocks. More of it means less bias and more bits. `count`
    codes the number of blocks. k and `count` belong to the header; the overshoot doesn't.
    """

    def __init__(
        self, k: int = 12, overshoot_bits: float = 2.0, count: IntegerCode | None = None
    ) -> None:
        check_search(k, overshoot_bits)
        self.k = k
        self.overshoot_bits = overshoot_bits
        self.count = count or EliasGamma()

    def encode(
        self,
        q: Gaussian,
        p: Gaussian,
        shared: SharedRandomness,
        step: int,
        writer: BitWriter,
        private: Private,
    ) -> Coded:
        """One step; `private` draws among the candidates."""
        total = float(kl_bits(q, p).sum())
        blocks = blocks_needed(total, self.k - self.overshoot_bits, q.dims)
        check_count(self.count, blocks)
        arrivals = [private.standard_exponential(1 << self.k) for _ in range(blocks)]
        message = BitWriter()
        self.count.write(message, blocks)
        side = message.bits
        for index in search(q, p, shared, step, arrivals):
            message.write(index, self.k)
        x = send(self, p, shared, step, message, writer)
        return Coded(x, total, message.bits - side, side, projection(q, p, x), blocks)

    def read(self, dims: int, reader: BitReader) -> list[int]:
        """One index of k bits a block."""
        return [reader.read(self.k) for _ in range(read_blocks(reader, self.count, dims))]

    def decode(self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader) -> Floats:
        """(D,) the sample: one codeword a block, no search."""
        return self.sample(p, shared, step, self.read(p.dims, reader))

    def sample(self, p: Gaussian, shared: SharedRandomness, step: int, packet: list[int]) -> Floats:
        """(D,) the sample that the indices name."""
        return assemble(p, shared, step, packet)
