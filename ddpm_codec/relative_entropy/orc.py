"""Ordered random coding (Theis & Yosri 2022): the sample of `mrc` for a cheaper index.

Minimal random coding picks argmin E_i / w_i with E_i ~ Exp(1). Sorting the E_i first leaves
the law of the picked candidate as it is, since the candidates are exchangeable, but moves the
pick towards small indices, which a prefix code then holds in few bits.
"""

from dataclasses import dataclass

import numpy as np

from ddpm_codec.entropy import BitReader, BitWriter, EliasGamma, IntegerCode, Raw
from ddpm_codec.errors import Corrupt
from ddpm_codec.prefix import INDEX_CODES
from ddpm_codec.relative_entropy.mrc import check_search, search
from ddpm_codec.relative_entropy.protocol import (
    Coded,
    Gaussian,
    Private,
    assemble,
    blocks_needed,
    check_count,
    kl_bits,
    projection,
    read_blocks,
    send,
)
from ddpm_codec.shared_randomness import Floats, SharedRandomness


@dataclass(frozen=True)
class IndexFormat:
    """A step's indices on the wire: their number, a class 0..7 for all of them, then each under
    `INDEX_CODES[class]`, counted from 1.

    `count` and `kl_class` code the first two: side information, in the header or the plan. The
    sender takes the class that makes the step shortest.
    """

    count: IntegerCode
    kl_class: IntegerCode

    def write(self, message: BitWriter, indices: list[int]) -> int:
        """Append the indices; returns the side bits, those before the indices."""

        def length_bits(kl_class: int) -> int:
            code = INDEX_CODES[kl_class]
            spent = sum(code.length_bits(index + 1) for index in indices)
            return self.kl_class.length_bits(kl_class) + spent

        best = min(range(len(INDEX_CODES)), key=length_bits)
        self.count.write(message, len(indices))
        self.kl_class.write(message, best)
        side = message.bits
        for index in indices:
            INDEX_CODES[best].write(message, index + 1)
        return side

    def read(self, reader: BitReader, dims: int) -> list[int]:
        """The indices, at least one; Corrupt where they can't be."""
        blocks = read_blocks(reader, self.count, dims)
        kl_class = self.kl_class.read(reader)
        if kl_class >= len(INDEX_CODES):
            raise Corrupt(f"index class {kl_class} of 0..7: the stream is damaged")
        return [INDEX_CODES[kl_class].read(reader) - 1 for _ in range(blocks)]


class OrderedRandomCoding:
    """K = 2^k candidates a block; k, the overshoot and `count` as in `MinimalRandomCoding`.

    `kl_class` codes the class of a step's indices; it belongs to the header as well.
    """

    def __init__(
        self,
        k: int = 12,
        overshoot_bits: float = 2.0,
        count: IntegerCode | None = None,
        kl_class: IntegerCode | None = None,
    ) -> None:
        check_search(k, overshoot_bits)
        self.k = k
        self.overshoot_bits = overshoot_bits
        self.indices = IndexFormat(count or EliasGamma(), kl_class or Raw(3))

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
        check_count(self.indices.count, blocks)
        arrivals = [np.sort(private.standard_exponential(1 << self.k)) for _ in range(blocks)]
        message = BitWriter()
        side = self.indices.write(message, search(q, p, shared, step, arrivals))
        x = send(self, p, shared, step, message, writer)
        return Coded(x, total, message.bits - side, side, projection(q, p, x), blocks)

    def read(self, dims: int, reader: BitReader) -> list[int]:
        """The indices, below 2^k."""
        indices = self.indices.read(reader, dims)
        if max(indices) >> self.k:
            raise Corrupt(f"candidate {max(indices)} of 2^{self.k}: the stream is damaged")
        return indices

    def decode(self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader) -> Floats:
        """(D,) the sample: one codeword a block, no search."""
        return self.sample(p, shared, step, self.read(p.dims, reader))

    def sample(self, p: Gaussian, shared: SharedRandomness, step: int, packet: list[int]) -> Floats:
        """(D,) the sample that the indices name."""
        return assemble(p, shared, step, packet)
