"""The stream: a header, packets without lengths, a checksum. `docs/format.md` has the layout.

A packet is one step of the walk: integers under raw and static prefix codes, which a parser from
the header's backend reads. No float takes part, so that every reader finds the same boundaries,
without the model. `StreamReader` takes bytes as they come.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from ddpm_codec.entropy import BitReader, BitWriter, read_varint, varint
from ddpm_codec.errors import (
    BitstreamError,
    ConfigError,
    Corrupt,
    ModelMismatch,
    Truncated,
    VersionMismatch,
)

MAGIC = b"\xddp"
VERSION = 3
MODEL_HASH_BYTES = 4
CRC_BYTES = 4
_MOST_LENGTH_BYTES = 5
MAX_SIDE = (1 << 14) - 1
MAX_SEED = (1 << 28) - 1
_FIXED_BYTES = len(MAGIC) + 1 + MODEL_HASH_BYTES + 3
_LOSSLESS, _CONSTANT_RATE, _GREY = 0x80, 0x40, 0x20
_MOST_BACKEND = 0x1F

ParsePacket = Callable[[list[int], BitReader], list[int]]
"""(the packet before, empty at the start; reader) to the packet's integers; Truncated where bits
run out."""


@dataclass(frozen=True)
class Header:
    """What a receiver must know beforehand; 15 bytes for a 32x32 picture with seed 0.

    `model`: the first 4 bytes of the checkpoint's hash. `backend`: number of the relative entropy
    coder, 0..31. `block_bits`: its parameter. `packets`: how many follow, which makes a stream
    complete. `lossless`: whether x_0 follows them. `grey`: one plane instead of three. `rate`: 0
    for a planned walk, else the size of a block under constant-rate stepping, 1..255 in units of
    its own (one byte more).
    """

    model: bytes
    width: int
    height: int
    backend: int
    block_bits: int
    packets: int
    lossless: bool = False
    seed: int = 0
    rate: int = 0
    grey: bool = False

    def check(self) -> None:
        """Raise ConfigError for a value that its field can't hold."""
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise ConfigError(
                f"a picture of {self.width}x{self.height}: a stream holds sides of 1 to {MAX_SIDE}"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed {self.seed}: choose one from 0 to {MAX_SEED}")
        small = {
            "packets": (self.packets, 255),
            "block bits": (self.block_bits, 255),
            "units of rate": (self.rate, 255),
            "backend": (self.backend, _MOST_BACKEND),
        }
        for name, (value, most) in small.items():
            if not 0 <= value <= most:
                raise ConfigError(f"{value} {name}: the header holds 0 to {most}")

    @property
    def planes(self) -> int:
        """C of the picture: 1 or 3."""
        return 1 if self.grey else 3

    @property
    def dims(self) -> int:
        """Dimensions of the picture, H * W * C."""
        return self.width * self.height * self.planes

    def pack(self) -> bytes:
        """The header's bytes, its own check included."""
        self.check()
        flags = self.backend | (_LOSSLESS if self.lossless else 0)
        flags |= (_CONSTANT_RATE if self.rate else 0) | (_GREY if self.grey else 0)
        body = MAGIC + bytes([VERSION]) + self.model[:MODEL_HASH_BYTES]
        body += bytes([flags, self.block_bits, self.packets])
        body += bytes([self.rate] if self.rate else [])
        body += b"".join(varint(v) for v in (self.width, self.height, self.seed))
        return body + _check16(body)


def check_model(sent: bytes, ours: bytes) -> None:
    """Raise ModelMismatch where a stream comes from another model."""
    if sent != ours:
        raise ModelMismatch(
            f"sent with model {sent.hex()}, but this is model {ours.hex()}: "
            "give the other checkpoint with --ckpt"
        )


def _check16(body: bytes) -> bytes:
    return (zlib.crc32(body) & 0xFFFF).to_bytes(2, "big")


def read_header(data: bytes) -> tuple[Header, int] | None:
    """(header, its length) from the beginning of a stream, or None where more bytes are needed.

    Raises Corrupt for what is no stream or damaged, VersionMismatch for another format version.
    """
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise Corrupt("not a ddpm-codec stream: it begins with other bytes")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise VersionMismatch(
            f"stream format version {data[len(MAGIC)]}; this program reads version {VERSION}"
        )
    if len(data) < _FIXED_BYTES:
        return None
    flags, block_bits, packets = data[_FIXED_BYTES - 3 : _FIXED_BYTES]
    rate_bytes = 1 if flags & _CONSTANT_RATE else 0
    at, numbers = _FIXED_BYTES + rate_bytes, []
    for most_bytes in (2, 2, 4):
        number = read_varint(data, at, most_bytes)
        if number is None:
            return None
        numbers.append(number[0])
        at = number[1]
    if len(data) < at + 2:
        return None
    if data[at : at + 2] != _check16(data[:at]):
        raise Corrupt("the header's check fails: the stream is damaged")
    rate = data[_FIXED_BYTES] if rate_bytes else 0
    header = Header(
        model=data[3 : 3 + MODEL_HASH_BYTES],
        width=numbers[0],
        height=numbers[1],
        backend=flags & _MOST_BACKEND,
        block_bits=block_bits,
        packets=packets,
        lossless=bool(flags & _LOSSLESS),
        seed=numbers[2],
        rate=rate,
        grey=bool(flags & _GREY),
    )
    if not (header.width and header.height) or (rate_bytes and not rate):
        raise Corrupt("a picture without pixels or blocks: the stream is damaged")
    return header, at + 2


def finish(header: Header, packets: BitWriter, x_0: bytes = b"", pixel_crc: int = 0) -> bytes:
    """A complete stream: header, packets, the coded x_0 with its pixels' CRC-32, CRC-32."""
    body = header.pack() + packets.getvalue()
    if header.lossless:
        body += varint(len(x_0)) + x_0 + pixel_crc.to_bytes(CRC_BYTES, "big")
    return body + zlib.crc32(body).to_bytes(CRC_BYTES, "big")


def size_bytes(header: Header, packet_bits: int) -> int:
    """Length of the complete stream with that many bits of packets and no x_0."""
    return len(header.pack()) + -(-packet_bits // 8) + CRC_BYTES


class StreamReader:
    """Takes a stream in pieces: `feed` returns the packets that became whole, `close` judges.

    `parser` makes the packet parser once the header is known; it may raise a BitstreamError.
    After `close`, `x_0` holds the coded pixels and `pixel_crc` their check, if there are any.
    """

    def __init__(self, parser: Callable[[Header], ParsePacket]) -> None:
        self.header: Header | None = None
        self.packet_ends: list[int] = []
        self.x_0: bytes | None = None
        self.pixel_crc: int | None = None
        self.fed_bytes = 0
        self._parser = parser
        self._parse: ParsePacket | None = None
        self._data = bytearray()
        self._header_bytes = 0
        self._bits = 0
        self._previous: list[int] = []

    def feed(self, data: bytes) -> list[list[int]]:
        """The packets that `data` completes. Raises Corrupt as soon as damage shows."""
        self._data += data
        self.fed_bytes += len(data)
        if self.header is None:
            found = read_header(bytes(self._data))
            if found is None:
                return []
            self.header, self._header_bytes = found
            self._parse = self._parser(self.header)
        packets = self._parse_packets(self.header)
        limit = self._end_of_packets() + CRC_BYTES
        if self.header.lossless:
            limit += CRC_BYTES + _MOST_LENGTH_BYTES + 4 * self.header.dims + 64
        if len(self.packet_ends) == self.header.packets and len(self._data) > limit:
            raise Corrupt(f"{len(self._data) - limit} bytes or more after the end of the stream")
        return packets

    def _parse_packets(self, header: Header) -> list[list[int]]:
        """Those that are whole now. Only bytes that no packet has used are looked at."""
        packets: list[list[int]] = []
        if len(self.packet_ends) == header.packets or self._parse is None:
            return packets
        whole_bytes, bits = divmod(self._bits, 8)
        reader = BitReader(bytes(self._data[self._header_bytes + whole_bytes :]))
        reader.read(bits)
        while len(self.packet_ends) < header.packets:
            try:
                packets.append(self._parse(self._previous, reader))
            except Truncated:
                break
            self._previous = packets[-1]
            self._bits = 8 * whole_bytes + reader.position
            self.packet_ends.append(self._bits)
        return packets

    def _end_of_packets(self) -> int:
        return self._header_bytes + -(-self._bits // 8)

    def close(self) -> None:
        """Raise Truncated where the stream is not complete, Corrupt where its checks fail."""
        data, at = bytes(self._data), self._end_of_packets()
        if self.header is None or len(self.packet_ends) < self.header.packets:
            raise self._truncated()
        padding = 8 * (at - self._header_bytes) - self._bits
        if padding and data[at - 1] & ((1 << padding) - 1):
            raise Corrupt(f"the padding before byte {at} is not zero: the stream is damaged")
        if self.header.lossless:
            length = read_varint(data, at, _MOST_LENGTH_BYTES)
            if length is None:
                raise self._truncated()
            end = length[1] + length[0]
            if len(data) < end + 2 * CRC_BYTES:
                raise self._truncated()
            self.x_0 = data[length[1] : end]
            self.pixel_crc = int.from_bytes(data[end : end + CRC_BYTES], "big")
            at = end + CRC_BYTES
        if len(data) < at + CRC_BYTES:
            raise self._truncated()
        if len(data) > at + CRC_BYTES:
            raise Corrupt(f"{len(data) - at - CRC_BYTES} bytes after the end of the stream")
        if int.from_bytes(data[at:], "big") != zlib.crc32(data[:at]):
            raise Corrupt("the stream's checksum fails: it is damaged")

    def _truncated(self) -> Truncated:
        if self.header is None:
            return Truncated(
                f"the stream ends at byte {self.fed_bytes}, in its header: it holds no picture"
            )
        return Truncated(
            f"the stream ends at byte {self.fed_bytes}, after {len(self.packet_ends)} of "
            f"{self.header.packets} packets; they decode to the best picture that it holds"
        )


def read_stream(
    data: bytes, parser: Callable[[Header], ParsePacket]
) -> tuple[StreamReader, list[list[int]], BitstreamError | None]:
    """A whole stream at once: the reader, its packets, and Truncated if it was cut.

    Raises any other BitstreamError.
    """
    reader = StreamReader(parser)
    packets = reader.feed(data)
    try:
        reader.close()
    except Truncated as error:
        if reader.header is None:
            raise
        return reader, packets, error
    return reader, packets, None


def truncate(data: bytes, max_bytes: int, parser: Callable[[Header], ParsePacket]) -> bytes:
    """The longest stream of at most `max_bytes` that is a prefix of packets, properly ended.

    Needs no model. Raises a BitstreamError unless `data` is complete, ConfigError if not even
    the header fits.
    """
    reader = StreamReader(parser)
    reader.feed(data)
    reader.close()
    assert reader.header is not None
    if len(data) <= max_bytes:
        return data
    shorter = replace(reader.header, lossless=False)
    ends = [0, *reader.packet_ends]
    fitting = [n for n, bits in enumerate(ends) if size_bytes(shorter, bits) <= max_bytes]
    if not fitting:
        raise ConfigError(
            f"--max-bytes {max_bytes}: the shortest stream has {size_bytes(shorter, 0)} bytes"
        )
    start, bits = len(reader.header.pack()), ends[fitting[-1]]
    writer, source = BitWriter(), BitReader(data[start:])
    while writer.bits < bits:
        piece = min(4096, bits - writer.bits)
        writer.write(source.read(piece), piece)
    return finish(replace(shorter, packets=fitting[-1]), writer)
