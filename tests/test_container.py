"""Oracle 7: prefixes, chunks and flipped bits of streams, with packets of known integers."""

import random
import zlib
from dataclasses import replace

import pytest

from ddpm_codec.container import StreamReader, finish, read_stream, truncate
from ddpm_codec.entropy import BitWriter, Centred
from ddpm_codec.errors import (
    BitstreamError,
    ConfigError,
    Corrupt,
    Truncated,
    VersionMismatch,
)
from ddpm_codec.header import MAX_SIDE, Header, read_header

HEADER = Header(b"\1\2\3\4", 32, 32, backend=1, block_bits=9, packets=6)
COUNTS = (1, 2, 4, 9, 7, 30)


def parser(header):
    def parse(before, reader):
        return [reader.read(9) for _ in range(Centred(len(before) or 1, 2).read(reader))]

    return parse


def packets(seed=0):
    rng, writer, values, before = random.Random(seed), BitWriter(), [], 1
    for count in COUNTS:
        values.append([rng.randrange(512) for _ in range(count)])
        Centred(before, 2).write(writer, count)
        for value in values[-1]:
            writer.write(value, 9)
        before = count
    return writer, values


def stream(lossless=False, last=0):
    writer, values = packets()
    header = replace(HEADER, lossless=lossless, last=last)
    return finish(header, writer, b"twelve bytes" * lossless, 0x01020304), values


def read_whole(data):
    reader = StreamReader(parser)
    reader.feed(data)
    reader.close()


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (HEADER, 15),
        (replace(HEADER, width=MAX_SIDE, height=1, seed=(1 << 28) - 1), 19),
        (replace(HEADER, lossless=True, packets=0, backend=31, grey=True), 15),
        (replace(HEADER, rate=255), 16),
        (replace(HEADER, last=255), 16),
    ],
)
def test_header_round_trip(header, length):
    data = header.pack()
    assert len(data) == length
    assert read_header(data + b"more") == (header, length)
    assert all(read_header(data[:n]) is None for n in range(length))


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": MAX_SIDE + 1},
        {"height": 0},
        {"seed": 1 << 28},
        {"packets": 256},
        {"last": 256},
        {"last": 1, "rate": 1},
        {"last": 1, "lossless": True},
    ],
)
def test_what_the_header_cannot_hold_is_refused(wrong):
    with pytest.raises(ConfigError):
        replace(HEADER, **wrong).pack()


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_any_chunking_agrees(lossless, size):
    data, values = stream(lossless)
    reader, seen = StreamReader(parser), []
    for start in range(0, len(data), size):
        seen += reader.feed(data[start : start + size])
    reader.close()
    assert seen == values
    assert reader.x_0 == (b"twelve bytes" if lossless else None)


@pytest.mark.parametrize("lossless", [False, True])
def test_every_prefix_yields_its_whole_packets(lossless):
    data, values = stream(lossless)
    known = 0
    for n in range(len(data)):
        reader = StreamReader(parser)
        seen = reader.feed(data[:n])
        assert seen == values[: len(seen)]
        assert len(seen) >= known
        known = len(seen)
        with pytest.raises(Truncated, match=f"byte {n}"):
            reader.close()
    assert known == len(values)


@pytest.mark.parametrize(("lossless", "last"), [(False, 0), (True, 0), (False, 77)])
def test_every_flipped_bit_of_a_complete_stream_is_an_error(lossless, last):
    data, _ = stream(lossless, last)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(BitstreamError):
            read_whole(bytes(damaged))


def test_other_things_are_told_apart():
    data, _ = stream()
    with pytest.raises(Corrupt, match="not a ddpm-codec stream"):
        read_stream(b"\x89PNG\r\n", parser)
    with pytest.raises(VersionMismatch, match="version 9"):
        read_stream(data[:2] + b"\x09" + data[3:], parser)
    with pytest.raises(Truncated, match="byte 0"):
        read_stream(b"", parser)
    with pytest.raises(Corrupt, match="after the end"):
        read_stream(data + b"x", parser)
    with pytest.raises(Corrupt, match="after the end"):
        StreamReader(parser).feed(data + b"x")  # at once: nothing can follow a lossy stream


def test_a_number_in_more_bytes_than_it_needs_is_damage():
    """With a right check: `truncate` takes the header's length from its values."""
    body = bytearray(replace(HEADER, packets=1).pack()[:-2])
    at = body.index(HEADER.width, 8)
    body[at : at + 1] = bytes([HEADER.width | 0x80, 0])
    body += (zlib.crc32(body) & 0xFFFF).to_bytes(2, "big")
    with pytest.raises(Corrupt, match="longer than"):
        read_header(bytes(body))


def test_truncate_cuts_at_packets_and_ends_properly():
    data, values = stream(lossless=True)
    sizes = set()
    for most in range(19, len(data) + 1):
        cut = truncate(data, most, parser)
        reader, seen, error = read_stream(cut, parser)
        assert error is None
        assert len(cut) <= most
        assert seen == values[: len(seen)]
        assert reader.header.packets == len(seen)
        sizes.add(len(cut))
    assert len(sizes) == len(COUNTS) + 2
    with pytest.raises(ConfigError, match="19 bytes"):
        truncate(data, 18, parser)


def test_a_damaged_stream_is_not_laundered_by_truncate():
    data, _ = stream()
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(Corrupt):
        truncate(damaged, 30, parser)
    with pytest.raises(Truncated):
        truncate(data[:-1], 30, parser)
