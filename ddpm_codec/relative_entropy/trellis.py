"""Trellis-coded max projection: the best of 2^R candidates by a search that is linear in R.

A shift register of kappa bits addresses a codebook of 2^kappa rows of Gaussian entries. A path
takes b new bits a stage and uses the row of its last kappa bits, so R = kappa + b L bits choose one
of 2^R words of D dimensions, and the Viterbi algorithm finds the one with the largest density
ratio q / p. The sample's projection along delta then is what the best of 2^R gives: R is
chosen so that it equals q's mean. The spread along delta collapses; the other directions are as p
has them. Not a sampler of q: judge it by the error of x_0_hat.

The window of bits is a convolutional code; trellis-coded quantisation (Marcellin & Fischer
1990) with random codebooks (Eriksson, Anderson, Goertz & Andersson 2007).
"""

from functools import lru_cache

import numpy as np

from ddpm_codec.entropy import BitReader, BitWriter, Centred, IntegerCode
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.relative_entropy.protocol import (
    Coded,
    Gaussian,
    LogRatio,
    Private,
    kl_bits,
    projection,
    send,
)
from ddpm_codec.shared_randomness import (
    CODEBOOK,
    DEAL,
    NORMAL_UNIT,
    SIGNS,
    Floats,
    Indices,
    SharedRandomness,
    Singles,
    block_address,
)

NEW_BITS = 2
"""b: bits that each stage takes."""
COLUMNS = 64
"""Entries of a row of the codebook; wider stages go on with rows at hashed addresses."""
MOST_STAGES = 248
"""Stages of a block behind its first."""
LEAST_KAPPA, MOST_KAPPA = 4, 20
_HASH = 0x9E3779B1
_MOST_SIZE = 1 << 18
_MOST_STAGES_A_DIMENSION = 8


def _sizes() -> tuple[int, ...]:
    sizes = [1]
    while sizes[-1] < _MOST_SIZE:
        sizes.append(sizes[-1] + max(1, sizes[-1] >> 4))
    return tuple(sizes)


SIZES = _sizes()
"""The sizes that a packet can have, a sixteenth apart: the wire holds a size's place in this."""
_SPENT_BITS = np.array([1, 4, 8, 12, 16, 32, 64, 128, 256.0])
_OVERHEAD = np.array([1.6, 0.78, 0.39, 0.265, 0.205, 0.165, 0.125, 0.085, 0.08])
"""Spent over effective bits, less 1, by spent bits at a matched mean, for kappa = 16."""
_OVERHEAD_POWER = 1.5
"""Other kappa: the overhead of paths goes about as kappa to minus this."""


@lru_cache(maxsize=2)
def codebook(key: tuple[int, int], kappa: int) -> Singles:
    """(2^kappa, COLUMNS) standard normal entries of the shared randomness with this key."""
    shared = SharedRandomness(*key)
    rows = shared.codewords(0, 0, 1 << kappa, COLUMNS, stream=CODEBOOK)
    return np.ascontiguousarray(rows * np.float32(NORMAL_UNIT))


def hashed(rows: Indices, copy: int, kappa: int) -> Indices:
    """The rows that `copy` of the codebook has in place of `rows`: a bijection; 0 changes none."""
    multiplier = (2 * copy * _HASH + 1) & ((1 << kappa) - 1)
    return rows * multiplier & ((1 << kappa) - 1)


def block_stages(size: int, kappa: int) -> list[int]:
    """Stages behind the first of every block, from the packet's size; a block that has no first
    stage of kappa bits is [0] with size <= kappa."""
    extra = max(0, size - kappa)
    blocks = max(1, -(-extra // MOST_STAGES))
    return [extra * (i + 1) // blocks - extra * i // blocks for i in range(blocks)]


def stage_edges(dims: int, first_bits: int, stages: int) -> Indices:
    """(stages + 2,) where each stage's dimensions begin: shares in proportion to their bits."""
    bits = np.append(0, first_bits + NEW_BITS * np.arange(stages + 1, dtype=np.int64))
    return dims * bits // bits[-1]


def viterbi(metric: Singles, kappa: int) -> list[int]:
    """(stages,) rows of the path with the largest sum of `metric` (stages, 2^kappa)."""
    split = (1 << NEW_BITS, 1 << (kappa - NEW_BITS))
    score, arrows = metric[0], []
    for stage in metric[1:]:
        by_state = score.reshape(split)
        arrows.append(by_state.argmax(axis=0).astype(np.uint8))
        score = stage + np.repeat(by_state.max(axis=0), 1 << NEW_BITS)
    path = [int(np.argmax(score))]
    for arrow in reversed(arrows):
        state = path[-1] >> NEW_BITS
        path.append(int(arrow[state]) << (kappa - NEW_BITS) | state)
    return path[::-1]


def path_word(path: list[int], first_bits: int) -> int:
    """The bits of a path: its first row, then NEW_BITS of every other."""
    word = path[0] & ((1 << first_bits) - 1)
    for row in path[1:]:
        word = word << NEW_BITS | row & ((1 << NEW_BITS) - 1)
    return word


def word_path(word: int, stages: int, kappa: int) -> list[int]:
    """The rows that a word names: the window slides over its bits."""
    mask = (1 << kappa) - 1
    return [word >> (NEW_BITS * (stages - i)) & mask for i in range(stages + 1)]


class Trellis:
    """kappa: bits of the shift register. The size of a packet is its R bits up to kappa, then
    kappa + the number of stages; `rank` codes its place in `SIZES`. kappa and `rank` belong to
    the header.
    """

    def __init__(self, kappa: int = 16, rank: IntegerCode | None = None) -> None:
        if not LEAST_KAPPA <= kappa <= MOST_KAPPA:
            raise ConfigError(f"a trellis of {kappa} bits: choose {LEAST_KAPPA} to {MOST_KAPPA}")
        self.kappa = kappa
        self.rank = rank or Centred(kappa, 2)

    def packet_rank(self, total_bits: float, dims: int) -> int:
        """The place in `SIZES` whose effective bits come nearest to a step's KL."""
        wanted = self._packet_size(total_bits)
        allowed = [n for n in SIZES if n <= self.kappa + _MOST_STAGES_A_DIMENSION * dims]
        return min(range(len(allowed)), key=lambda rank: abs(allowed[rank] - wanted))

    def _packet_size(self, total_bits: float) -> int:
        worse = min(2.0, (16 / self.kappa) ** _OVERHEAD_POWER)
        overhead = np.where(self.kappa < _SPENT_BITS, worse * _OVERHEAD, _OVERHEAD)
        effective = _SPENT_BITS / (1 + overhead)
        if total_bits >= effective[-1]:
            spent = total_bits * (1 + overhead[-1])
        else:
            spent = float(np.interp(total_bits, effective, _SPENT_BITS))
        if spent <= self.kappa:
            return max(1, round(spent))
        blocks = max(1, round(spent / (self.kappa + NEW_BITS * MOST_STAGES)))
        return self.kappa + max(1, round((spent - blocks * self.kappa) / NEW_BITS))

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
        size = SIZES[rank]
        side, ratio = message.bits, LogRatio.of(q, p)
        first_bits = min(size, self.kappa)
        blocks = self._layout(shared, step, q.dims, size)
        for dims, signs, stages in blocks:
            metric = self._metric(ratio, dims, signs, stages, first_bits, shared)
            path = viterbi(metric, self.kappa)
            message.write(path_word(path, first_bits), first_bits + NEW_BITS * stages)
        x = send(self, p, shared, step, message, writer)
        return Coded(x, total, message.bits - side, side, projection(q, p, x), len(blocks))

    def read(self, dims: int, reader: BitReader) -> list[int]:
        """The place of the packet's size in `SIZES`, then the word of every block."""
        rank = self.rank.read(reader)
        if rank >= len(SIZES) or SIZES[rank] > self.kappa + _MOST_STAGES_A_DIMENSION * dims:
            raise Corrupt(f"a packet of size {rank} for {dims} dimensions: the stream is damaged")
        size = SIZES[rank]
        first_bits = min(size, self.kappa)
        stages = block_stages(size, self.kappa)
        return [rank, *(reader.read(first_bits + NEW_BITS * n) for n in stages)]

    def sample(self, p: Gaussian, shared: SharedRandomness, step: int, packet: list[int]) -> Floats:
        """(D,) the sample that a packet names: rows of the codebook, no search."""
        size, words = SIZES[packet[0]], packet[1:]
        first_bits, rows = min(size, self.kappa), codebook(shared.key, self.kappa)
        x = np.empty(p.dims)
        blocks = self._layout(shared, step, p.dims, size)
        for word, (dims, signs, stages) in zip(words, blocks, strict=True):
            path = word_path(word, stages, self.kappa)
            edges = stage_edges(len(dims), first_bits, stages)
            pieces = [
                self._stage_row(rows, row, int(end - start))
                for row, start, end in zip(path, edges[:-1], edges[1:], strict=True)
            ]
            c = np.concatenate(pieces).astype(np.float64) * signs
            x[dims] = p.mean[dims] + p.std[dims] * c
        return x

    def decode(self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader) -> Floats:
        """(D,) the sample: no search."""
        return self.sample(p, shared, step, self.read(p.dims, reader))

    def _layout(
        self, shared: SharedRandomness, step: int, dims: int, size: int
    ) -> list[tuple[Indices, Floats, int]]:
        """(dimensions in stage order, their fresh signs, stages behind the first) of each block."""
        order = shared.permutation(DEAL, block_address(step, 0), dims)
        bits = shared.integers(SIGNS, block_address(step, 0), dims, 2)
        signs = (1 - 2 * bits).astype(np.float64)
        stages = block_stages(size, self.kappa)
        cuts = [dims * i // len(stages) for i in range(len(stages) + 1)]
        return [
            (order[a:b], signs[a:b], n) for a, b, n in zip(cuts[:-1], cuts[1:], stages, strict=True)
        ]

    def _stage_row(self, rows: Singles, row: int, width: int) -> Singles:
        """(width,) a stage's codeword: the row, then its hashed copies."""
        copies = range(max(1, -(-width // COLUMNS)))
        at = [int(hashed(np.array([row]), copy, self.kappa)[0]) for copy in copies]
        return rows[at].ravel()[:width]

    def _metric(
        self,
        ratio: LogRatio,
        dims: Indices,
        signs: Floats,
        stages: int,
        first_bits: int,
        shared: SharedRandomness,
    ) -> Singles:
        """(stages + 1, 2^kappa) each row's part of log w, up to a constant, at each stage.

        C v - 1/2 C^2 s^2 with v = rho delta and s^2 = rho^2 - 1 (see `LogRatio`), one GEMM for
        all stages and copies. Of a first stage of fewer bits only 2^bits rows are allowed.
        """
        rows = codebook(shared.key, self.kappa)
        linear = ratio.rho[dims] * ratio.delta[dims] * signs
        quadratic = 0.5 * (1 - ratio.rho[dims] ** 2)
        edges = stage_edges(len(dims), first_bits, stages)
        pieces = [
            (stage, copy, start, min(start + COLUMNS, int(edges[stage + 1])))
            for stage in range(stages + 1)
            for copy, start in enumerate(range(int(edges[stage]), int(edges[stage + 1]), COLUMNS))
        ]
        weights = np.zeros((2, COLUMNS, len(pieces)), dtype=np.float32)
        for column, (_, _, start, end) in enumerate(pieces):
            weights[0, : end - start, column] = linear[start:end]
            weights[1, : end - start, column] = quadratic[start:end]
        part = (weights[0].T @ rows.T) + (weights[1].T @ (rows * rows).T)
        every = np.arange(1 << self.kappa)
        metric = np.zeros((stages + 1, 1 << self.kappa), dtype=np.float32)
        for values, (stage, copy, _, _) in zip(part, pieces, strict=True):
            metric[stage] += values[hashed(every, copy, self.kappa)] if copy else values
        metric[0, 1 << first_bits :] = -np.inf
        return metric
