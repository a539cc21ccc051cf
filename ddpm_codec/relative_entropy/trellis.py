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

import numpy as np
import numpy.typing as npt

from ddpm_codec.entropy import BitReader, BitWriter, IntegerCode
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.parallel import parallel_map
from ddpm_codec.prefix import Nearby
from ddpm_codec.relative_entropy.protocol import (
    Coded,
    Gaussian,
    LogRatio,
    Private,
    kl_bits,
    projection,
    send,
)
from ddpm_codec.relative_entropy.trellis_search import (
    COLUMNS,
    hashed,
    planes,
    stage_edges,
    stage_metrics,
    viterbi,
)
from ddpm_codec.shared_randomness import (
    CODEBOOK,
    DEAL,
    NORMAL_UNIT,
    SIGNS,
    Floats,
    Indices,
    SharedRandomness,
    block_address,
)

LEAST_KAPPA, MOST_KAPPA = 4, 18
MOST_NEW_BITS = 4
MOST_BLOCK_BITS = 2048
MOST_PACKET_BITS = 1 << 26
_MOST_BITS_A_DIMENSION = 16


Block = tuple[Indices, npt.NDArray[np.int8], int, int]
"""Dimensions in stage order, fresh signs, first bits, further stages."""


def _sizes() -> tuple[int, ...]:
    sizes = [1]
    while sizes[-1] < MOST_PACKET_BITS:
        sizes.append(sizes[-1] + max(1, sizes[-1] >> 2))
    return tuple(sizes)


SIZES = _sizes()
"""The bits that a packet's words can have, a quarter apart: the wire holds a place in this."""

FIRST_RANK = 6
"""Expected of a stream's first packet: 7 bits."""

_SPENT_BITS = np.array([1, 4, 8, 12, 16, 32, 64, 128, 256, 1024.0])
_OVERHEAD = np.array([1.6, 0.9, 0.39, 0.265, 0.205, 0.16, 0.115, 0.095, 0.08, 0.068])
"""Spent over effective bits, less 1, by spent bits at a matched mean, for kappa = 16."""
_OVERHEAD_POWER = 1.5
"""Other kappa: the overhead of paths goes about as kappa to minus this."""


def spent_bits(kl: Floats, kappa: int) -> Floats:
    """The bits of a packet that delivers steps of `kl` bits (any shape) at a matched mean."""
    worse = min(2.0, (16 / kappa) ** _OVERHEAD_POWER)
    overhead = np.where(kappa < _SPENT_BITS, worse * _OVERHEAD, _OVERHEAD)
    effective = _SPENT_BITS / (1 + overhead)
    longest = kl * (1 + overhead[-1])
    return np.where(kl < effective[-1], np.interp(kl, effective, _SPENT_BITS), longest)


def size_ranks(bits: Floats, sizes: tuple[int, ...] = SIZES) -> Indices:
    """The place in `sizes` nearest to `bits` (any shape), by ratio; the first below it."""
    middles = np.log(sizes)
    middles = 0.5 * (middles[1:] + middles[:-1])
    return np.searchsorted(middles, np.log(np.maximum(bits, sizes[0])))


def word_path(word: int, stages: int, kappa: int, new_bits: int) -> list[int]:
    """The rows that a word names: the window slides over its bits."""
    mask = (1 << kappa) - 1
    return [word >> (new_bits * (stages - i)) & mask for i in range(stages + 1)]


def path_word(path: list[int], new_bits: int) -> int:
    """The bits of a path: its first row, then `new_bits` of every other."""
    word = path[0]
    for row in path[1:]:
        word = word << new_bits | row & ((1 << new_bits) - 1)
    return word


class Trellis:
    """kappa: bits of the shift register; new_bits: b. `rank` codes the place of a packet's size
    in `sizes`. All of them belong to the header.
    """

    def __init__(
        self,
        kappa: int = 16,
        new_bits: int = 2,
        rank: IntegerCode | None = None,
        sizes: tuple[int, ...] = SIZES,
    ) -> None:
        if not LEAST_KAPPA <= kappa <= MOST_KAPPA:
            raise ConfigError(f"a trellis of {kappa} bits: choose {LEAST_KAPPA} to {MOST_KAPPA}")
        if not 1 <= new_bits <= min(MOST_NEW_BITS, kappa - 1):
            raise ConfigError(f"a trellis with {new_bits} new bits a stage: choose 1 to 4")
        self.kappa, self.new_bits, self.sizes = kappa, new_bits, sizes
        self.rank = rank or Nearby(FIRST_RANK)

    def packet_rank(self, total_bits: float, dims: int) -> int:
        """The place in `sizes` whose effective bits come nearest to a step's KL, by ratio."""
        most = np.searchsorted(self.sizes, _MOST_BITS_A_DIMENSION * dims, side="right") - 1
        wanted = spent_bits(np.array(total_bits), self.kappa)
        return max(0, min(int(most), int(size_ranks(wanted, self.sizes))))

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
        side, size = message.bits, self.sizes[rank]
        words = self._search(q, p, shared, step, size)
        for word, (first_bits, stages) in zip(words, self._blocks(size), strict=True):
            message.write(word, first_bits + self.new_bits * stages)
        x = send(self, p, shared, step, message, writer)
        return Coded(x, total, message.bits - side, side, projection(q, p, x), len(words))

    def _search(
        self, q: Gaussian, p: Gaussian, shared: SharedRandomness, step: int, size: int
    ) -> list[int]:
        """The best word of every block of a packet of `size` bits. What the search holds is freed
        before the packet is decoded, which on large pictures needs as much."""
        ratio, table = LogRatio.of(q, p), planes(shared.key, self.kappa)

        def search(block: Block) -> int:
            dims, signs, first_bits, stages = block
            linear = ratio.rho[dims] * ratio.delta[dims] * signs
            quadratic = 0.5 * (1 - ratio.rho[dims] ** 2)
            edges = stage_edges(len(dims), first_bits, stages, self.new_bits)
            metrics = stage_metrics(linear, quadratic, edges, table, self.kappa)
            return path_word(viterbi(metrics, self.kappa, first_bits, self.new_bits), self.new_bits)

        return parallel_map(search, self._layout(shared, step, q.dims, size))

    def read(self, dims: int, reader: BitReader) -> list[int]:
        """The place of the packet's size in `sizes`, then the word of every block."""
        rank = self.rank.read(reader)
        if rank >= len(self.sizes) or (rank and self.sizes[rank] > _MOST_BITS_A_DIMENSION * dims):
            raise Corrupt(f"a packet of size {rank} for {dims} dimensions: the stream is damaged")
        blocks = self._blocks(self.sizes[rank])
        return [rank, *(reader.read(first + self.new_bits * stages) for first, stages in blocks)]

    def sample(self, p: Gaussian, shared: SharedRandomness, step: int, packet: list[int]) -> Floats:
        """(D,) the sample that a packet names: rows of the codebook, no search."""
        x = np.empty(p.dims)
        blocks = self._layout(shared, step, p.dims, self.sizes[packet[0]])
        for word, (dims, signs, first_bits, stages) in zip(packet[1:], blocks, strict=True):
            path = np.array(word_path(word, stages, self.kappa, self.new_bits))
            edges = stage_edges(len(dims), first_bits, stages, self.new_bits)
            c = self._codeword(shared, path, edges) * signs
            x[dims] = p.mean[dims] + p.std[dims] * c
        return x

    def decode(self, p: Gaussian, shared: SharedRandomness, step: int, reader: BitReader) -> Floats:
        """(D,) the sample: no search."""
        return self.sample(p, shared, step, self.read(p.dims, reader))

    def _blocks(self, size: int) -> list[tuple[int, int]]:
        """(bits of the first stage, further stages) of every block of a packet."""
        count = -(-size // MOST_BLOCK_BITS)
        sizes = [size * (i + 1) // count - size * i // count for i in range(count)]
        return [(min(n, self.kappa), max(0, n - self.kappa) // self.new_bits) for n in sizes]

    def _layout(self, shared: SharedRandomness, step: int, dims: int, size: int) -> list[Block]:
        """(dimensions in stage order, fresh signs, first bits, further stages) of each block."""
        bits = shared.integers(SIGNS, block_address(step, 0), dims, 2)
        signs = (1 - 2 * bits).astype(np.int8)
        order = shared.permutation(DEAL, block_address(step, 0), dims)
        blocks = self._blocks(size)
        cuts = [dims * i // len(blocks) for i in range(len(blocks) + 1)]
        return [
            (order[a:b], signs[a:b], *block)
            for a, b, block in zip(cuts[:-1], cuts[1:], blocks, strict=True)
        ]

    def _codeword(self, shared: SharedRandomness, path: Indices, edges: Indices) -> Floats:
        """(D,) the entries that a path names: each stage its row, then the row's hashed copies."""
        widths = np.diff(edges)
        copies = np.maximum(1, -(-widths // COLUMNS))
        stage = np.repeat(np.arange(len(path)), copies)
        copy = np.arange(len(stage)) - np.repeat(np.cumsum(copies) - copies, copies)
        rows = hashed(path[stage], copy, self.kappa)
        entries = shared.codewords(0, rows, COLUMNS, stream=CODEBOOK)
        used = np.arange(COLUMNS) < (widths[stage] - COLUMNS * copy)[:, None]
        return entries[used].astype(np.float64) * NORMAL_UNIT
