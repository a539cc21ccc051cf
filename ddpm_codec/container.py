"""The stream: a header, packets without lengths, a checksum. `docs/format.md` has the layout.

A packet is one step of the walk: integers under raw and static prefix codes, which a parser from
the header's backend reads. No float takes part, so that every reader finds the same boundaries,
without the model. `StreamReader` takes bytes as they come.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace

from ddpm_codec.entropy import BitReader, BitWriter, read_varint, varint
from ddpm_codec.errors import BitstreamError, ConfigError, Corrupt, Truncated
from ddpm_codec.header import Header, read_header

CRC_BYTES = 4
_MOST_LENGTH_BYTES = 5

ParsePacket = Callable[[list[int], BitReader], list[int]]
"""(the packet before, empty at the start; reader) to the packet's integers; Truncated where bits
run out."""


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
    shorter = replace(reader.header, lossless=False, last=0)
    ends = [0, *reader.packet_ends]
    if reader.header.last:
        ends.pop()  # all of it or nothing
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
