"""An archive: many pictures on one stack by bits back, with their sizes and names.

`docs/format.md` has the layout. Every byte is under a CRC-32, which is checked before anything
else, and what the first picture drew from is known beforehand: finding it again at the bottom of
the stack proves that every picture before was decoded right.
"""

import itertools
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ddpm_codec.bits_back import DISAGREES, BitsBack, Stack, Words
from ddpm_codec.bound import Progress
from ddpm_codec.checkpoint import Checkpoint
from ddpm_codec.codec import MAX_PIXELS, is_grey
from ddpm_codec.container import CRC_BYTES
from ddpm_codec.entropy import read_varint, varint
from ddpm_codec.errors import ConfigError, Corrupt, VersionMismatch
from ddpm_codec.header import MAX_SIDE, MODEL_HASH_BYTES, check_model
from ddpm_codec.shared_randomness import INITIAL, SharedRandomness

MAGIC = b"\xdda"
VERSION = 1
MAX_PICTURES = 1 << 20
MAX_NAME_BYTES = 255
_WORD = np.dtype("<u4")
_SPARE_WORDS = 4  # the coder's state and its seal


@dataclass(frozen=True)
class Kind:
    """What a decoder must know of a picture beforehand: its sides in pixels, and whether it is one
    plane."""

    width: int
    height: int
    grey: bool


@dataclass(frozen=True)
class Archive:
    """An archive's parts. `names`: one a picture, or none at all. `initial`: how many words lay on
    the stack for the first picture to draw from. `words` (M,) uint32: the stack. `model`: the first
    bytes of the checkpoint's hash."""

    model: bytes
    steps: int
    kinds: list[Kind]
    names: list[str]
    initial: int
    words: Words

    def pack(self) -> bytes:
        """Its bytes."""
        runs = [(kind, len(list(run))) for kind, run in itertools.groupby(self.kinds)]
        names = zlib.compress("\n".join(self.names).encode(), 9) if self.names else b""
        numbers = [self.steps, self.initial, len(runs)]
        for kind, count in runs:
            numbers += [2 * count + kind.grey, kind.width, kind.height]
        body = MAGIC + bytes([VERSION]) + self.model
        body += b"".join(varint(n) for n in [*numbers, len(names)]) + names
        body += self.words.astype(_WORD).tobytes()
        return body + zlib.crc32(body).to_bytes(CRC_BYTES, "big")


def initial_words(count: int) -> Words:
    """(count,) what lies on the stack before the first picture: the last one is number 0."""
    shared = SharedRandomness(0, VERSION)
    return shared.integers(INITIAL, 0, count, 1 << 32)[::-1].astype(np.uint32)


def _kind(pixels: Tensor) -> Kind:
    _, height, width = pixels.shape
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ConfigError(
            f"a picture of {width}x{height}: an archive holds sides to {MAX_SIDE} and "
            f"{MAX_PIXELS} pixels"
        )
    return Kind(width, height, is_grey(pixels))


@dataclass(frozen=True)
class Packed:
    """An archive's bytes; `picture_bits` (N,) what each picture added to the stack, which held
    `initial_bits` before."""

    data: bytes
    picture_bits: list[int]
    initial_bits: int


def pack(
    source: Checkpoint,
    pictures: Sequence[Tensor],
    names: Sequence[str] = (),
    steps: int = 50,
    progress: Progress | None = None,
) -> Packed:
    """All pictures (3,H,W) uint8 in one archive, losslessly, by a chain of `steps` timesteps.

    `names`: one a picture, or none. `progress` is told of every network call. ConfigError for
    pictures, names or steps that an archive can't hold.
    """
    if not 1 <= len(pictures) <= MAX_PICTURES:
        raise ConfigError(f"{len(pictures)} pictures: an archive holds 1 to {MAX_PICTURES}")
    if names and len(names) != len(pictures):
        raise ConfigError(f"{len(names)} names for {len(pictures)} pictures")
    for name in names:
        _check_name(name, ConfigError)
    kinds = [_kind(picture) for picture in pictures]
    coder = _coder(source, steps, progress)
    most = max(kind.width * kind.height for kind in kinds)
    stack = Stack(initial_words(3 * most + _SPARE_WORDS))
    bits = []
    for picture, kind in zip(reversed(pictures), reversed(kinds), strict=True):
        before = stack.bits
        coder.push(stack, picture, kind.grey)
        bits.append(stack.bits - before)
    unused = max(0, stack.fewest_words - _SPARE_WORDS)
    initial = 3 * most + _SPARE_WORDS - unused
    model = bytes.fromhex(source.hash)[:MODEL_HASH_BYTES]
    archive = Archive(model, steps, kinds, list(names), initial, stack.words()[unused:])
    return Packed(archive.pack(), bits[::-1], 32 * initial)


def unpack(
    source: Checkpoint, archive: Archive, progress: Progress | None = None
) -> Iterator[Tensor]:
    """The pictures (3,H,W) uint8 of an archive, one after the other.

    Raises ModelMismatch before the first; Corrupt after the last one if anything went wrong: until
    then no picture is proven.
    """
    check_model(archive.model, bytes.fromhex(source.hash)[:MODEL_HASH_BYTES])
    coder = _coder(source, archive.steps, progress)
    try:
        stack = Stack(archive.words, sealed=False)
    except ValueError as error:
        raise Corrupt("the archive's last word is 0: it is damaged") from error
    for kind in archive.kinds:
        yield coder.pop(stack, (kind.height, kind.width), kind.grey)
        if stack.fewest_words == 0:
            raise Corrupt(f"the stack is empty before the last picture: {DISAGREES}")
    if not np.array_equal(stack.words(), Stack(initial_words(archive.initial)).words()):
        raise Corrupt(f"the stack does not end where it began: {DISAGREES}")


def _coder(source: Checkpoint, steps: int, progress: Progress | None) -> BitsBack:
    if source.calibration is None:
        raise ConfigError("this checkpoint has no calibration: run `ddpm-codec calibrate`")
    model = source.model("calibrated", float64=True)
    return BitsBack(model, model.schedule.log_snr_grid(steps), progress)


def _check_name(name: str, error: type[Exception]) -> None:
    size = len(name.encode(errors="replace"))
    printable = all(c.isprintable() or unicodedata.category(c) == "Zs" for c in name)
    if not 1 <= size <= MAX_NAME_BYTES or name in (".", "..") or not printable:
        raise error(f"{name[:80]!r} as a picture's name: 1 to {MAX_NAME_BYTES} printable bytes")
    if "/" in name or "\\" in name:
        raise error(f"{name[:80]!r} as a picture's name: it must name no folder")


class _Fields:
    """Reads an archive's fields one after the other; Corrupt for a number that ends early."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def number(self, least: int, most: int, what: str) -> int:
        found = read_varint(self.data, self.at, 5)
        if found is None or not least <= found[0] <= most:
            raise Corrupt(f"the archive's {what} at byte {self.at}: {least} to {most} expected")
        value, self.at = found
        return value

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]


def read_archive(data: bytes) -> Archive:
    """The parts of an archive; nothing is decoded.

    Raises Corrupt for what is none or is damaged, VersionMismatch for another version.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise Corrupt("not a ddpm-codec archive: it begins with other bytes")
    if data[len(MAGIC) : len(MAGIC) + 1] != bytes([VERSION]):
        raise VersionMismatch(f"an archive of another format; this program reads {VERSION}")
    body, crc = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if zlib.crc32(body).to_bytes(CRC_BYTES, "big") != crc:
        raise Corrupt("the archive's checksum fails: it is damaged or incomplete")
    start = len(MAGIC) + 1
    fields = _Fields(body, start + MODEL_HASH_BYTES)
    steps = fields.number(2, 1 << 16, "number of steps")
    initial = fields.number(0, 3 * MAX_PIXELS + _SPARE_WORDS, "number of initial words")
    kinds: list[Kind] = []
    for _ in range(fields.number(1, MAX_PICTURES, "number of runs")):
        count, grey = divmod(fields.number(2, 2 * MAX_PICTURES + 1, "length of a run"), 2)
        kind = Kind(
            fields.number(1, MAX_SIDE, "width"), fields.number(1, MAX_SIDE, "height"), bool(grey)
        )
        if len(kinds) + count > MAX_PICTURES or kind.width * kind.height > MAX_PIXELS:
            raise Corrupt("the archive announces more than one can hold")
        kinds += [kind] * count
    names = _read_names(fields.bytes(fields.number(0, len(body), "length of names")), len(kinds))
    rest = fields.bytes(max(0, len(body) - fields.at))
    if len(rest) % _WORD.itemsize:
        raise Corrupt(f"{len(rest)} bytes of coded pictures: not a whole number of words")
    if initial > 3 * max(kind.width * kind.height for kind in kinds) + _SPARE_WORDS:
        raise Corrupt(f"{initial} initial words: more than the pictures could use")
    words = np.frombuffer(rest, _WORD).astype(np.uint32)
    return Archive(body[start : start + MODEL_HASH_BYTES], steps, kinds, names, initial, words)


def _read_names(data: bytes, count: int) -> list[str]:
    """One name a picture, or none; no more memory than they can take."""
    if not data:
        return []
    inflater, most = zlib.decompressobj(), (MAX_NAME_BYTES + 1) * count
    try:
        joined = inflater.decompress(data, most)
        if not inflater.eof or joined.count(b"\n") != count - 1:  # before a list of them is made
            raise Corrupt(f"the archive's names: {count} were expected")
        names = joined.decode().split("\n")
    except (zlib.error, UnicodeDecodeError) as error:
        raise Corrupt("the archive's names can't be read: it is damaged") from error
    for name in names:
        _check_name(name, Corrupt)
    return names
