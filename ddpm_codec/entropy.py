"""Bits in order, and static prefix codes for integers: no floats, no adaptive state.

A writer packs bits most significant first. A code is a value with `write`, `read` and an exact
`length_bits`; parsing needs nothing but the bits themselves and integers from the header.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from ddpm_codec.errors import ConfigError, Corrupt, Truncated

INTEGER_BITS = 32
"""Integers on the wire stay below 2^32; a prefix that announces more is damage."""
MOST_ZEROS = 1024
"""Longest unary part of a Rice code; a longer one is damage."""


class BitWriter:
    """Collects bits; `bits` says how many."""

    def __init__(self) -> None:
        self.bits = 0
        self._bytes = bytearray()
        self._tail = 0

    def write(self, value: int, bits: int) -> None:
        """Append the `bits` lowest bits of `value`, which must have no others."""
        if value < 0 or value >> bits:
            raise ConfigError(f"{value} in {bits} bits: it doesn't fit")
        filled = self.bits % 8 + bits
        self._tail = self._tail << bits | value
        whole, left = divmod(filled, 8)
        self._bytes += (self._tail >> left).to_bytes(whole, "big")
        self._tail &= (1 << left) - 1
        self.bits += bits

    def append(self, other: "BitWriter") -> None:
        """Append all bits of another writer."""
        for byte in other._bytes:
            self.write(byte, 8)
        self.write(other._tail, other.bits % 8)

    def getvalue(self) -> bytes:
        """The bytes so far, the last one padded with zeros."""
        left = self.bits % 8
        return bytes(self._bytes) + (bytes([self._tail << (8 - left)]) if left else b"")


class BitReader:
    """Reads what a `BitWriter` wrote. `position` counts the bits read so far.

    `bits`: how many there are, without the padding; by default all of `data`.
    """

    def __init__(self, data: bytes, bits: int | None = None) -> None:
        self.bits = 8 * len(data) if bits is None else bits
        self.position = 0
        self._data = data
        if not 0 <= self.bits <= 8 * len(data):
            raise ConfigError(f"{self.bits} bits from {len(data)} bytes: there are fewer")

    def read(self, bits: int) -> int:
        """The next `bits` bits as an integer; Truncated where they run out."""
        end = self.position + bits
        if end > self.bits:
            raise Truncated(
                f"the stream ends at bit {self.bits} where {bits} bits from bit {self.position} "
                "were expected: get the whole file"
            )
        first, last = self.position // 8, -(-end // 8)
        window = int.from_bytes(self._data[first:last], "big") >> (8 * last - end)
        self.position = end
        return window & ((1 << bits) - 1)

    def read_zeros(self, most: int) -> int:
        """The zeros before the next one, which is read as well; Corrupt above `most`."""
        for zeros in range(most + 1):
            if self.read(1):
                return zeros
        raise Corrupt(
            f"more than {most} zeros before bit {self.position} where a number was expected: "
            "the stream is damaged"
        )


class IntegerCode(Protocol):
    """A prefix code for integers; ConfigError for one outside of its domain."""

    def write(self, writer: BitWriter, value: int) -> None: ...
    def read(self, reader: BitReader) -> int: ...
    def length_bits(self, value: int) -> int: ...


def _check(value: int, least: int, most: int, code: str) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{value} under the {code} code: it holds {least} to {most}")


@dataclass(frozen=True)
class Raw:
    """0 .. 2^bits - 1 in `bits` bits."""

    bits: int

    def write(self, writer: BitWriter, value: int) -> None:
        writer.write(value, self.bits)

    def read(self, reader: BitReader) -> int:
        return reader.read(self.bits)

    def length_bits(self, value: int) -> int:
        _check(value, 0, (1 << self.bits) - 1, f"raw {self.bits}-bit")
        return self.bits


@dataclass(frozen=True)
class EliasGamma:
    """n in 1 .. 2^32 - 1: floor(log2 n) zeros, then n in binary (Elias 1975)."""

    def write(self, writer: BitWriter, value: int) -> None:
        writer.write(value, self.length_bits(value))

    def read(self, reader: BitReader) -> int:
        zeros = reader.read_zeros(INTEGER_BITS - 1)
        return 1 << zeros | reader.read(zeros)

    def length_bits(self, value: int) -> int:
        _check(value, 1, (1 << INTEGER_BITS) - 1, "Elias gamma")
        return 2 * value.bit_length() - 1


@dataclass(frozen=True)
class Rice:
    """n >= 0: n >> parameter in zeros, a one, then the `parameter` low bits (Rice 1979)."""

    parameter: int = 0

    def write(self, writer: BitWriter, value: int) -> None:
        low = value & ((1 << self.parameter) - 1)
        writer.write(1 << self.parameter | low, self.length_bits(value))

    def read(self, reader: BitReader) -> int:
        zeros = reader.read_zeros(MOST_ZEROS)
        return zeros << self.parameter | reader.read(self.parameter)

    def length_bits(self, value: int) -> int:
        most = (MOST_ZEROS + 1 << self.parameter) - 1
        _check(value, 0, most, f"Rice {self.parameter}")
        return (value >> self.parameter) + 1 + self.parameter


@dataclass(frozen=True)
class Centred:
    """n >= 0 that is expected near `centre`: Rice of the rank of n by distance from it.

    Ranks: centre, centre + 1, centre - 1, centre + 2, ... until 0 is used up, then upwards.
    """

    centre: int
    parameter: int = 0

    def rank(self, value: int) -> int:
        """0 for the centre; from 2 centre + 1 on, the rank of n is n."""
        away = value - self.centre
        if value < 0 or value > 2 * self.centre:
            return value
        return 2 * away - 1 if away > 0 else -2 * away

    def write(self, writer: BitWriter, value: int) -> None:
        Rice(self.parameter).write(writer, self.rank(value))

    def read(self, reader: BitReader) -> int:
        rank = Rice(self.parameter).read(reader)
        if rank > 2 * self.centre:
            return rank
        return self.centre + (rank + 1) // 2 if rank % 2 else self.centre - rank // 2

    def length_bits(self, value: int) -> int:
        return Rice(self.parameter).length_bits(self.rank(value))


@dataclass(frozen=True)
class Prefix:
    """Symbols 0 .. n-1 under the canonical prefix code of the given lengths, in bits.

    Codewords are numbered by (length, symbol), as in DEFLATE (RFC 1951, 3.2.2).
    """

    lengths: tuple[int, ...]

    @cached_property
    def words(self) -> tuple[int, ...]:
        """The codeword of every symbol."""
        words, word, last = [0] * len(self.lengths), 0, 0
        for length, symbol in sorted((length, s) for s, length in enumerate(self.lengths)):
            word <<= length - last
            words[symbol], last = word, length
            word += 1
        return tuple(words)

    @cached_property
    def symbols(self) -> dict[tuple[int, int], int]:
        """(length, codeword) to symbol."""
        return {(n, w): s for s, (n, w) in enumerate(zip(self.lengths, self.words, strict=True))}

    def write(self, writer: BitWriter, value: int) -> None:
        length = self.length_bits(value)
        writer.write(self.words[value], length)

    def read(self, reader: BitReader) -> int:
        word = 0
        for length in range(1, max(self.lengths) + 1):
            word = word << 1 | reader.read(1)
            if (length, word) in self.symbols:
                return self.symbols[length, word]
        raise Corrupt(f"no symbol before bit {reader.position}: the stream is damaged")

    def length_bits(self, value: int) -> int:
        _check(value, 0, len(self.lengths) - 1, "prefix")
        return self.lengths[value]


@dataclass(frozen=True)
class HalfOctave:
    """n in 1 .. 2^25 - 1: the half-octave that holds n under `symbol`, then raw bits.

    Half-octave 0 is {1}; 2 j - 1 and 2 j are the lower and upper half of 2^j .. 2^(j+1) - 1,
    so the j - 1 lowest bits of n are left over.
    """

    symbol: Prefix

    def write(self, writer: BitWriter, value: int) -> None:
        self.length_bits(value)
        half, low = half_octave(value)
        self.symbol.write(writer, half)
        writer.write(value & ((1 << low) - 1), low)

    def read(self, reader: BitReader) -> int:
        half = self.symbol.read(reader)
        octave = (half + 1) // 2
        if octave < 1:
            return 1
        top = 2 + (half + 1) % 2
        return top << (octave - 1) | reader.read(octave - 1)

    def length_bits(self, value: int) -> int:
        _check(value, 1, (1 << (len(self.symbol.lengths) + 1) // 2) - 1, "half-octave")
        half, low = half_octave(value)
        return self.symbol.length_bits(half) + low


def half_octave(value: int) -> tuple[int, int]:
    """(half-octave, raw bits left over) of value >= 1."""
    octave = value.bit_length() - 1
    if octave == 0:
        return 0, 0
    return 2 * octave - 1 + (value >> (octave - 1) & 1), octave - 1


INDEX_CODES = tuple(
    HalfOctave(Prefix(tuple(int(digit, 36) for digit in lengths)))
    for lengths in (
        "123456789abceffgggghhhhiiiijjjjkkkklllllmmmmnnnoo",  # 0.5
        "134344666789abcdfgghhhhiiiijjjjkkkklllllmmmmnnnoo",  # 1
        "233344445566778889abcdefiiiijjjjkkkklllllmmmmnnnn",  # 2
        "23444444545566667788999abcdefgjjjjkkkkklllmmmmmnn",  # 3
        "24444454545555656677778899aaabcdefiiiiijjjkkkkkll",  # 4
        "345454545454545555656677778899aabbcccdefgijjjjjkk",  # 5.5
        "355555555454545555555566667677888899aabbcccdefghh",  # 7
        "456555555555545455555555656666777787889999aabbccb",  # 8.5
    )
)
"""Codes for the index of a candidate, one a class: the KL in bits of the block that it is best
for. Huffman lengths (a digit to base 36 each) of the law of the Poisson functional
representation's index for unit-variance Gaussians:

    index - 1 ~ Poisson(S (w P(w' < w) - Q(w' < w))),  S ~ Exp(1), w = w(z), z ~ q,

mixed with a thousandth of 2^(-symbol/4), so that no symbol is impossible."""
