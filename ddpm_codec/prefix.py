"""Static prefix codes for symbols with a known law: indices of candidates, sizes of packets."""

from dataclasses import dataclass
from functools import cached_property

from ddpm_codec.entropy import BitReader, BitWriter, Raw, check_domain
from ddpm_codec.errors import Corrupt


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
        check_domain(value, 0, len(self.lengths) - 1, "prefix")
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
        check_domain(value, 1, (1 << (len(self.symbol.lengths) + 1) // 2) - 1, "half-octave")
        half, low = half_octave(value)
        return self.symbol.length_bits(half) + low


def half_octave(value: int) -> tuple[int, int]:
    """(half-octave, raw bits left over) of value >= 1."""
    octave = value.bit_length() - 1
    if octave == 0:
        return 0, 0
    return 2 * octave - 1 + (value >> (octave - 1) & 1), octave - 1


@dataclass(frozen=True)
class Nearby:
    """n in 0 .. 255 that is expected near `centre`: n - centre under a prefix code, or an escape
    and n in 8 bits."""

    centre: int

    def write(self, writer: BitWriter, value: int) -> None:
        symbol = self._symbol(value)
        NEARBY.write(writer, symbol)
        if symbol == NEARBY_ESCAPE:
            _FAR.write(writer, value)

    def read(self, reader: BitReader) -> int:
        symbol = NEARBY.read(reader)
        if symbol == NEARBY_ESCAPE:
            return _FAR.read(reader)
        if self.centre + symbol < NEARBY_BELOW:
            raise Corrupt(f"a size below 0 before bit {reader.position}: the stream is damaged")
        return self.centre + symbol - NEARBY_BELOW

    def length_bits(self, value: int) -> int:
        symbol = self._symbol(value)
        far = _FAR.length_bits(value) if symbol == NEARBY_ESCAPE else 0
        return NEARBY.length_bits(symbol) + far

    def _symbol(self, value: int) -> int:
        check_domain(value, 0, 255, "nearby")
        symbol = value - self.centre + NEARBY_BELOW
        return symbol if 0 <= symbol < NEARBY_ESCAPE else NEARBY_ESCAPE


NEARBY_BELOW, NEARBY_ESCAPE = 4, 11
NEARBY = Prefix((10, 7, 5, 3, 3, 1, 3, 4, 6, 8, 10, 9))
"""Of -4 .. 6 and the escape: how the size of a packet differs from the one before, in quarters."""
_FAR = Raw(8)
NEARBY_BITS = tuple(
    length + (_FAR.bits if symbol == NEARBY_ESCAPE else 0)
    for symbol, length in enumerate(NEARBY.lengths)
)
"""What each symbol costs, the escape with the eight bits behind it."""

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
