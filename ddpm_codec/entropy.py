"""Bits in order, and static prefix codes for integers: no floats, no adaptive state.

A writer packs bits most significant first. A code is a value with `write`, `read` and an exact
`length_bits`; parsing needs nothing but the bits themselves and integers from the header.
"""

from dataclasses import dataclass
from typing import Protocol

from ddpm_codec.errors import ConfigError, Corrupt, Truncated

INTEGER_BITS = 32
"""Integers on the wire stay below 2^32; a prefix that announces more is damage."""
MOST_ZEROS = 1024
"""Longest unary part of a Rice code; a longer one is damage."""


_PIECE_BYTES = 512


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
        for start in range(0, len(other._bytes), _PIECE_BYTES):
            piece = other._bytes[start : start + _PIECE_BYTES]
            self.write(int.from_bytes(piece, "big"), 8 * len(piece))
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


def check_domain(value: int, least: int, most: int, code: str) -> None:
    """Raise ConfigError for a value that a code can't hold."""
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
        check_domain(value, 0, (1 << self.bits) - 1, f"raw {self.bits}-bit")
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
        check_domain(value, 1, (1 << INTEGER_BITS) - 1, "Elias gamma")
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
        check_domain(value, 0, most, f"Rice {self.parameter}")
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


def varint(value: int) -> bytes:
    """Seven bits a byte, least significant first, the top bit set but on the last."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def read_varint(data: bytes, at: int, most_bytes: int) -> tuple[int, int] | None:
    """(value, next position), or None where more bytes are needed. Corrupt for a number that goes
    on, or that fewer bytes would hold: a length must follow from the value."""
    value = 0
    for i in range(most_bytes):
        if at + i >= len(data):
            return None
        value |= (data[at + i] & 0x7F) << (7 * i)
        if data[at + i] == 0 and i:
            raise Corrupt(f"the number at byte {at} is longer than it need be: damaged")
        if data[at + i] < 0x80:
            return value, at + i + 1
    raise Corrupt(f"the number at byte {at} does not end: the stream is damaged")
