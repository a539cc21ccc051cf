"""The header of a stream: what a receiver must know beforehand. `docs/format.md` has the layout."""

import zlib
from dataclasses import dataclass

from ddpm_codec.entropy import read_varint, varint
from ddpm_codec.errors import ConfigError, Corrupt, ModelMismatch, VersionMismatch

MAGIC = b"\xddp"
VERSION = 3
"""Also keys the shared randomness, of both versions."""
SHORT_VERSION = 4
"""Of streams whose last step is a part of the plan's; a byte of the header says how much of it."""
MODEL_HASH_BYTES = 4
MAX_SIDE = (1 << 14) - 1
MAX_SEED = (1 << 28) - 1
_FIXED_BYTES = len(MAGIC) + 1 + MODEL_HASH_BYTES + 3
_LOSSLESS, _CONSTANT_RATE, _GREY = 0x80, 0x40, 0x20
_MOST_BACKEND = 0x1F


@dataclass(frozen=True)
class Header:
    """What a receiver must know beforehand; 15 bytes for a 32x32 picture with seed 0.

    `model`: the first 4 bytes of the checkpoint's hash. `backend`: number of the relative entropy
    coder, 0..31. `block_bits`: its parameter. `packets`: how many follow, which makes a stream
    complete. `lossless`: whether x_0 follows them. `grey`: one plane instead of three. `rate`: 0
    for a planned walk, else the size of a block under constant-rate stepping, 1..255 in units of
    its own (one byte more). `last`: 0, or how many 256ths of its way along the plan the last packet
    goes (one byte more, for a planned walk without x_0).
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
    last: int = 0

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
            "256ths of the last step": (self.last, 0 if self.rate or self.lossless else 255),
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
        body = MAGIC + bytes([SHORT_VERSION if self.last else VERSION])
        body += self.model[:MODEL_HASH_BYTES] + bytes([flags, self.block_bits, self.packets])
        body += bytes(value for value in (self.rate, self.last) if value)
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
    if len(data) > len(MAGIC) and data[len(MAGIC)] not in (VERSION, SHORT_VERSION):
        raise VersionMismatch(
            f"stream format version {data[len(MAGIC)]}; this program reads versions {VERSION} and "
            f"{SHORT_VERSION}"
        )
    if len(data) < _FIXED_BYTES:
        return None
    flags, block_bits, packets = data[_FIXED_BYTES - 3 : _FIXED_BYTES]
    is_short, has_rate = data[len(MAGIC)] == SHORT_VERSION, bool(flags & _CONSTANT_RATE)
    at, numbers = _FIXED_BYTES + is_short + has_rate, []
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
    rate = data[_FIXED_BYTES] if has_rate else 0
    last = data[_FIXED_BYTES] if is_short else 0
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
        last=last,
    )
    if not (header.width and header.height) or (has_rate and not rate):
        raise Corrupt("a picture without pixels or blocks: the stream is damaged")
    if is_short and (has_rate or header.lossless or not (last and packets)):
        raise Corrupt("a short last step where there is none: the stream is damaged")
    return header, at + 2
