"""The Poisson functional representation (Li & El Gamal 2018): exact, up to a stated epsilon.

Candidates arrive at times T_i = T_{i-1} + Exp(1); the one with the least T_i / w_i has law q,
and its index costs at most KL + log2(KL + 1) + 4 bits. The search is without end, but after
time T, with best score s, the expected number of candidates still to come that would win is
known (`late_winners`). It stops below epsilon, which so bounds the probability that the sample
isn't the exact one, and with it the total variation between a block's law and q. Only the sender
needs arrival times: they come from shared randomness so that equal seeds give equal bytes.
"""

import numpy as np

from ddpm_codec.entropy import BitReader, BitWriter, EliasGamma, IntegerCode, Raw
from ddpm_codec.errors import ConfigError
from ddpm_codec.relative_entropy.late_winners import LateWinners
from ddpm_codec.relative_entropy.orc import IndexFormat
from ddpm_codec.relative_entropy.protocol import (
    CHUNK_NORMALS,
    Coded,
    Gaussian,
    LogRatio,
    Private,
    assemble,
    blocks_needed,
    check_count,
    deal,
    kl_bits,
    projection,
    send,
)
from ddpm_codec.shared_randomness import (
    ARRIVALS,
    Floats,
    SharedRandomness,
    block_address,
)

MOST_BLOCK_BITS = 8
MOST_CANDIDATES = 1 << 24
_FIRST_CHUNK = 256


class PoissonFunctional:
    """Blocks of about `block_bits` of KL, each exact up to `epsilon` in total variation.

    A step has the fewest blocks that keep their mean below `block_bits` and each below
    `spread_bits` more, as far as there are dimensions to deal. The search grows as
    2^(B + 1.7 sqrt(B) Phi^-1(1 - epsilon)) with a block's KL of B bits; one that reaches
    `most_candidates` is cut, and counted in `Coded.cut_blocks`: for it epsilon isn't promised.
    Only `count` and `kl_class`, as in `OrderedRandomCoding`, belong to the header.

    One dimension is never shared between blocks, so a dimension of many bits is a long search.
    """

    def __init__(
        self,
        block_bits: float = 5.0,
        epsilon: float = 1e-3,
        most_candidates: int = 1 << 20,
        count: IntegerCode | None = None,
        kl_class: IntegerCode | None = None,
        spread_bits: float = 1.0,
    ) -> None:
        if not 0 < block_bits <= MOST_BLOCK_BITS:
            raise ConfigError(f"blocks of {block_bits} bits: choose more than 0, at most 8")
        if not 0 < epsilon < 1:
            raise ConfigError(f"an epsilon of {epsilon}: it must lie between 0 and 1")
        if not 1 <= most_candidates <= MOST_CANDIDATES:
            raise ConfigError(f"{most_candidates} candidates: choose 1 to {MOST_CANDIDATES}")
        self.block_bits = block_bits
        self.spread_bits = spread_bits
        self.epsilon = epsilon
        self.most_candidates = most_candidates
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
        """One step; nothing in it is private."""
        per_dimension = kl_bits(q, p)
        total = float(per_dimension.sum())
        blocks = self._blocks(per_dimension, shared, step)
        check_count(self.indices.count, blocks)
        found = [
            self._search(LogRatio.of(q.at(dims), p.at(dims)), shared, block_address(step, block))
            for block, dims in enumerate(deal(shared, step, q.dims, blocks))
        ]
        indices = [index for index, _ in found]
        message = BitWriter()
        side = self.indices.write(message, indices)
        x = send(self, p, shared, step, message, writer)
        return Coded(
            sample=x,
            kl_bits=total,
            spent_bits=message.bits - side,
            side_bits=side,
            projection=projection(q, p, x),
            blocks=len(found),
            cut_blocks=sum(cut for _, cut in found),
        )

    def read(self, dims: int, reader: BitReader) -> list[int]:
        """The indices, without limit but that of their code."""
        return self.indices.read(reader, dims)

    def decode(self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader) -> Floats:
        """(D,) the sample: one codeword a block, no search."""
        return self.sample(p, shared, step, self.read(p.dims, reader))

    def sample(self, p: Gaussian, shared: SharedRandomness, step: int, packet: list[int]) -> Floats:
        """(D,) the sample that the indices name."""
        return assemble(p, shared, step, packet)

    def _blocks(self, per_dimension: Floats, shared: SharedRandomness, step: int) -> int:
        """The number of blocks for the KL `per_dimension` (D,) in bits: so many that none has more
        than `spread_bits` above its aim, or a bit beside the largest dimension, if that is more."""
        most = max(self.block_bits + self.spread_bits, float(per_dimension.max()) + 1.0)
        blocks = blocks_needed(float(per_dimension.sum()), self.block_bits, len(per_dimension))
        while blocks < len(per_dimension):
            dealt = deal(shared, step, len(per_dimension), blocks)
            if max(per_dimension[d].sum() for d in dealt) <= most:
                break
            blocks = min(blocks + 1 + blocks // 16, len(per_dimension))
        return blocks

    def _search(self, ratio: LogRatio, shared: SharedRandomness, block: int) -> tuple[int, bool]:
        """(the candidate with the least T_i / w_i, whether the search was cut)."""
        late, dims = LateWinners(ratio), len(ratio.delta)
        best, log_s, time, first, count = 0, np.inf, 0.0, 0, _FIRST_CHUNK
        while first < self.most_candidates:
            count = min(count, self.most_candidates - first)
            times = time + np.cumsum(shared.exponentials(ARRIVALS, block, first, count))
            scores = np.log(times) - ratio.nats(shared.candidates(block, first, count, dims))
            here = int(np.argmin(scores))
            if scores[here] < log_s:
                best, log_s = first + here, float(scores[here])
            first, time = first + count, float(times[-1])
            if late.expected(log_s, np.log(time)) < self.epsilon:
                return best, False
            count = min(max(_FIRST_CHUNK, first // 2), max(1, CHUNK_NORMALS // dims))
        return best, True
