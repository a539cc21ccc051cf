"""Randomness that sender and receiver share: a pure function of integers, on any machine.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps a
counter of four 32-bit words, under a key of two, to four random words. The key is (seed, format
version), the counter (column, candidate, block, stream), so that everything is read at random
access: the receiver computes the one codeword that was named, only the sender searches.

Codewords are standard normal. Each 16-bit half of a Philox output picks one of 65,536 normal
quantiles from a shipped table, and the eight halves of a call are mixed by an 8x8 Hadamard
matrix. The table alone ends at 4.33 standard deviations, which a Gaussian q far from p
notices; a mixture of eight reaches 12.2 with the right density on the way.
"""

import threading
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt

from ddpm_codec.errors import ConfigError

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

CODEWORDS, DEAL, ARRIVALS, CODEBOOK, SIGNS, DITHER, INITIAL = range(7)
"""Streams: what a block's randomness is for. Streams never overlap."""

LANES = 8
"""Normals from one Philox call."""
BLOCKS_A_STEP = 1 << 16
QUANTILE_UNIT = 2.0**-13
"""The table's fixed point; its quantiles have variance 1 - 2.1e-5 and fourth moment 3 - 8.8e-4."""
NORMAL_UNIT = QUANTILE_UNIT / LANES**0.5
"""What an integer of `SharedRandomness.codewords` counts, in standard deviations."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_PIECE = 1 << 14
_FIRST_TILE, _MOST_TILE = 256, 1 << 12
"""Candidates that `candidates` makes and keeps together: 256, then so many that their number
doubles, then 2^12 at a time. Long searches need few tiles, short ones make little in vain."""


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> Words:
    """(4, M) output words below 2^32 of Philox4x32-10 for M counters, each word (M,)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = p1 >> _HALF, p0 >> _HALF
        c0 ^= c1
        c0 ^= np.uint64(k0)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        p1 &= _LOW
        p0 &= _LOW
        c1, c3 = p1, p0
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


@cache
def normal_quantiles() -> Singles:
    """(65536,) ndtri((i + 1/2) / 65536) in units of QUANTILE_UNIT: integers, exact in float32.

    The file holds the upper half; the lower one mirrors it.
    """
    file = resources.files("ddpm_codec").joinpath("assets/normal_quantiles.npy")
    with file.open("rb") as stream:
        upper = np.load(stream, allow_pickle=False).astype(np.float32)
    return np.concatenate([-upper[::-1], upper])


def hadamard(lanes: Singles) -> Singles:
    """(8, M) to (8, M): times the 8x8 Hadamard matrix of signs (-1)^popcount(row & column).

    Three rounds of sums and differences, in numpy: a BLAS would start threads for it.
    """
    for distance in (1, 2, 4):
        pairs = lanes.reshape(LANES // (2 * distance), 2, distance, -1)
        mixed = np.empty_like(pairs)
        np.add(pairs[:, 0], pairs[:, 1], out=mixed[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=mixed[:, 1])
        lanes = mixed.reshape(LANES, -1)
    return lanes


def block_address(step: int, block: int) -> int:
    """The counter word of one block of one step; ConfigError where it would not fit."""
    if not (0 <= step < 1 << 16 and 0 <= block < BLOCKS_A_STEP):
        raise ConfigError(f"block {block} of step {step}: both must be 0..65535; use fewer")
    return step * BLOCKS_A_STEP + block


class SharedRandomness:
    """Random access to the variates of (seed, version), both 0..2^32-1.

    Pictures of a batch ask for the same candidates at the same step: up to `memory_bytes` of them
    are kept until another step is asked for.
    """

    def __init__(self, seed: int, version: int, memory_bytes: int = 0) -> None:
        for name, value in (("seed", seed), ("format version", version)):
            if not 0 <= value < 1 << 32:
                raise ConfigError(f"{name} {value}: choose an integer from 0 to {2**32 - 1}")
        self.key = (seed, version)
        self._tiles = _Tiles(memory_bytes)

    def words(self, stream: int, block: int, candidates: Indices, columns: slice) -> Words:
        """(4, C, N) 32-bit words of counters (column, candidate, block, stream)."""
        grid = (len(candidates), columns.stop - columns.start)
        column = np.arange(columns.start, columns.stop, dtype=np.uint64)
        candidate = candidates.astype(np.uint64)
        c0 = np.broadcast_to(column, grid).ravel()
        c1 = np.broadcast_to(candidate[:, None], grid).ravel()
        out = np.empty((4, c0.size), dtype=np.uint64)
        for start in range(0, c0.size, _PIECE):  # small enough to stay in the cache
            part = slice(start, start + _PIECE)
            c2, c3 = np.full_like(c0[part], block), np.full_like(c0[part], stream)
            out[:, part] = philox((c0[part], c1[part], c2, c3), self.key)
        return out.reshape(4, *grid)

    def codewords(
        self, block: int, candidates: Indices, dims: int, stream: int = CODEWORDS
    ) -> Singles:
        """(C, dims) the candidates of these numbers (C,): integers in units of NORMAL_UNIT.

        Dimensions 8 g .. 8 g + 7 are the Hadamard mixture of the quantiles of counter column
        g; its word i holds the 16 bits of lane 2 i below those of lane 2 i + 1. The sums stay
        below 2^24, so that float32 holds them exactly.
        """
        columns = -(-dims // LANES)
        words = self.words(stream, block, candidates, slice(0, columns))
        halves = words.astype("<u4").view("<u2").reshape(4, -1, 2)
        lanes = np.take(normal_quantiles(), halves.transpose(0, 2, 1).reshape(LANES, -1))
        return np.ascontiguousarray(hadamard(lanes).T).reshape(len(candidates), -1)[:, :dims]

    def candidates(self, block: int, first: int, count: int, dims: int) -> Singles:
        """(count, dims) the codewords number first, first + 1, ... of a block, for a search."""
        parts, at, end = [], first, first + count
        while at < end:
            begin, rows = _tile_of(at)
            stop = min(begin + rows, end)
            tile = self._tile(block, begin, rows, dims)
            if tile is None:  # no room for it
                parts.append(self.codewords(block, np.arange(at, stop), dims))
            else:
                parts.append(tile[at - begin : stop - begin, :dims])
            at = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _tile(self, block: int, begin: int, rows: int, dims: int) -> Singles | None:
        """(rows, at least dims) the codewords of a tile, if there is room to keep them."""
        tile = self._tiles.find(block, begin)
        wide = tile is not None and tile.shape[1] >= dims
        if not wide and self._tiles.has_room(block, begin, 4 * rows * dims):
            tile, wide = self.codewords(block, begin + np.arange(rows), dims), True
            self._tiles.keep(block, begin, tile)
        return tile if wide else None

    def normals(self, block: int, candidate: int, dims: int) -> Floats:
        """(dims,) one candidate, standard normal, as the receiver reads it."""
        codeword = self.codewords(block, np.array([candidate]), dims)[0]
        return codeword.astype(np.float64) * NORMAL_UNIT

    def long_words(self, stream: int, block: int, first: int, count: int) -> Words:
        """(count,) 64-bit words number first, first + 1, ... of a stream's block."""
        columns = slice(first // 2, (first + count + 1) // 2)
        words = self.words(stream, block, np.zeros(1, np.int64), columns)[:, 0].T.reshape(-1, 2)
        return (words[:, 0] | words[:, 1] << _HALF)[first % 2 :][:count]

    def integers(self, stream: int, block: int, count: int, bound: int) -> Indices:
        """(count,) integers 0..bound-1, bound <= 2^32: the upper word of bound times a word.

        A value's probability is off by less than 2^-32.
        """
        if not 1 <= bound <= 1 << 32:
            raise ConfigError(f"integers below {bound}: the bound must be 1..2^32")
        words = self.long_words(stream, block, 0, count) & _LOW
        return (words * np.uint64(bound) >> _HALF).astype(np.int64)

    def permutation(self, stream: int, block: int, count: int) -> Indices:
        """(count,) a permutation: indices in the order of (64-bit word, index)."""
        return np.argsort(self.long_words(stream, block, 0, count), kind="stable")

    def uniforms(self, stream: int, block: int, first: int, count: int) -> Floats:
        """(count,) in (0, 1): the odd multiples of 2^-53. Exact, so equal on every machine."""
        bits = self.long_words(stream, block, first, count) >> np.uint64(12)
        return (bits.astype(np.float64) + 0.5) * 2.0**-52

    def exponentials(self, stream: int, block: int, first: int, count: int) -> Floats:
        """(count,) Exp(1). For the sender alone: logarithms differ between machines."""
        return -np.log(self.uniforms(stream, block, first, count))


def _tile_of(candidate: int) -> tuple[int, int]:
    """(begin, rows) of a candidate's tile: from 0, 256, 512, 1024, 2048 or a multiple of 4096."""
    if candidate < _FIRST_TILE:
        return 0, _FIRST_TILE
    if candidate >= _MOST_TILE:
        return candidate - candidate % _MOST_TILE, _MOST_TILE
    begin = 1 << (candidate.bit_length() - 1)
    return begin, begin


class _Tiles:
    """Codewords of one step by block and where the tile begins, at most `most_bytes` of them."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._kept: dict[tuple[int, int], Singles] = {}
        self._bytes, self._step = 0, -1
        self._lock = threading.Lock()  # pictures are searched on threads

    def find(self, block: int, begin: int) -> Singles | None:
        """The tile, if it is here."""
        return self._kept.get((block, begin))

    def has_room(self, block: int, begin: int, size: int) -> bool:
        """Whether a tile of `size` bytes could be kept in place of its narrower self."""
        with self._lock:
            return self._more(block, begin, size) <= self.most_bytes

    def keep(self, block: int, begin: int, tile: Singles) -> None:
        """Put a tile in place of its narrower self, if there is room; forget other steps."""
        with self._lock:
            total = self._more(block, begin, tile.nbytes)
            if total <= self.most_bytes:
                self._kept[block, begin] = tile
                self._bytes = total

    def _more(self, block: int, begin: int, size: int) -> int:
        """Bytes that would be kept with a tile of `size`, those of other steps forgotten."""
        if block // BLOCKS_A_STEP != self._step:
            self._kept, self._bytes, self._step = {}, 0, block // BLOCKS_A_STEP
        before = self._kept.get((block, begin))
        return self._bytes + size - (0 if before is None else before.nbytes)
