"""Archives: many pictures, one stack, every byte checked."""

import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddpm_codec.archive import MAGIC, VERSION, Archive, Kind, pack, read_archive, unpack
from ddpm_codec.calibration import calibrate
from ddpm_codec.cli.archive import _names
from ddpm_codec.errors import BitstreamError, ConfigError, Corrupt, ModelMismatch, VersionMismatch

from .conftest import TINY, random_checkpoint

SHAPES = [(8, 8), (8, 8), (3, 17), (1, 1), (8, 8)]
NAMES = ["a.png", "b.jpg", "c d.webp", "ä.png", "e"]


@pytest.fixture(scope="module")
def source():
    source = random_checkpoint(TINY)
    pixels = (255 * torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))).byte()
    source.calibration = calibrate(source.model(), pixels, torch.Generator().manual_seed(0))
    return source


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(2)
    all_ = [(255 * torch.rand(3, *shape, generator=generator)).byte() for shape in SHAPES]
    all_[1] = all_[1][:1].expand(3, 8, 8).contiguous()
    return all_


@pytest.fixture(scope="module")
def packed(source, pictures):
    return pack(source, pictures, NAMES, steps=4)


def checked(body):
    return body + zlib.crc32(body).to_bytes(4, "big")


@pytest.mark.parametrize("names", [NAMES, []])
def test_unpack_gives_what_was_packed(source, pictures, names):
    calls = []
    packed = pack(source, pictures, names, steps=4, progress=calls.append)
    assert sum(calls) == 4 * len(pictures)
    parts = read_archive(packed.data)
    assert parts.names == names
    assert [(k.height, k.width) for k in parts.kinds] == SHAPES
    assert [k.grey for k in parts.kinds] == [False, True, False, False, False]
    received = list(unpack(source, parts))
    assert all(torch.equal(a, b) for a, b in zip(received, pictures, strict=True))


def test_the_bytes_are_what_the_pictures_add(packed):
    """Initial bits and what the pictures added, then fields, names and a checksum."""
    parts = read_archive(packed.data)
    assert packed.initial_bits == 32 * parts.initial
    stack = 32 * len(parts.words)
    assert 0 <= stack - packed.initial_bits - sum(packed.picture_bits) < 96
    assert len(packed.data) - 4 * len(parts.words) < 60 + sum(map(len, NAMES))


def test_few_initial_bits(source, pictures):
    """No word below what the first picture reached stays in the file; later ones need none."""
    one, five = (pack(source, p, steps=4) for p in (pictures[:1], pictures[:1] * 5))
    assert five.initial_bits <= one.initial_bits + 64
    dims = pictures[0].numel()
    assert one.initial_bits < 16 * dims


def test_same_bytes_again(source, pictures, packed):
    assert pack(source, pictures, NAMES, steps=4).data == packed.data


def test_any_flipped_bit_is_an_error(packed):
    data = bytearray(packed.data)
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        with pytest.raises(BitstreamError):
            read_archive(bytes(data))
        data[at] ^= 1 << at % 8


@pytest.mark.parametrize("length", [0, 2, 3, 4, 11, 40, -1])
def test_cut_archives_are_errors(packed, length):
    with pytest.raises(BitstreamError):
        read_archive(packed.data[:length])


def unpacks_to(source, data, pictures):
    """Whether a forged archive gives these pictures; Corrupt where trying would only take long."""
    parts = read_archive(data)
    if sum(k.width * k.height for k in parts.kinds) > 4096 or parts.steps > 8:
        raise Corrupt("not tried")
    return all(map(torch.equal, list(unpack(source, parts)), pictures))


def test_forged_archives_are_errors(source, pictures, packed):
    """With a right checksum. In the stack, the initial bits find any damage. Fields may be forged
    into an archive that is as good: other names, say."""
    rng = np.random.default_rng(0)
    body = bytearray(packed.data[:-4])
    stack = len(body) - 4 * len(read_archive(packed.data).words)
    for at in [*range(2, stack), *rng.integers(stack, len(body), 15)]:
        forged = body.copy()
        forged[at] ^= 1 << int(rng.integers(8))
        try:
            same = unpacks_to(source, checked(bytes(forged)), pictures)
        except (BitstreamError, ConfigError):
            continue
        assert at < stack
        assert same


def test_another_model_or_version(source, packed):
    other = replace(source, weights={k: v + 0.01 for k, v in source.weights.items()})
    with pytest.raises(ModelMismatch):
        next(unpack(other, read_archive(packed.data)))
    body = bytearray(packed.data[:-4])
    body[len(MAGIC)] = VERSION + 1
    with pytest.raises(VersionMismatch):
        read_archive(checked(bytes(body)))


def test_a_short_stack_is_an_error(source, packed):
    parts = read_archive(packed.data)
    with pytest.raises(Corrupt, match=r"empty|draws|does not end"):
        list(unpack(source, replace(parts, words=parts.words[-8:])))
    with pytest.raises(Corrupt, match="last word"):
        list(unpack(source, replace(parts, words=np.append(parts.words, np.uint32(0)))))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "x" * 256, "\x00"])
def test_names_that_would_leave_the_folder(source, pictures, name):
    with pytest.raises(ConfigError, match="name"):
        pack(source, pictures[:1], [name], steps=4)
    if name:
        archive = Archive(b"\0" * 4, 4, [Kind(1, 1, False)], [name], 0, np.ones(1, np.uint32))
        with pytest.raises(Corrupt, match="name"):
            read_archive(archive.pack())


def test_unpacked_pictures_never_share_a_name():
    """`x.bmp` becomes `x.bmp.png`; where there was one, both were once written to it."""
    names = ["x.bmp", "X.BMP.png", "y.png", "y.PNG", "z.jpg"]
    kinds = [Kind(1, 1, False)] * len(names)
    found = _names(Archive(b"\0" * 4, 4, kinds, names, 0, np.ones(1, np.uint32)))
    assert len({name.casefold() for name in found}) == len(names)
    assert found == ["x.bmp~0.png", "X.BMP.png", "y.png", "y.PNG.png", "z.jpg.png"]


def test_unpacked_names_are_never_too_long_for_a_file():
    names = ["n" * 251 + ".bmp", "n" * 253, "n" * 246 + "~1.png", "\u00e9" * 127]
    kinds = [Kind(1, 1, False)] * len(names)
    found = _names(Archive(b"\0" * 4, 4, kinds, names, 0, np.ones(1, np.uint32)))
    assert len(set(found)) == len(names)
    assert max(len(name.encode()) for name in found) <= 255
    assert all(name.endswith(".png") for name in found)


def test_names_that_screenshots_have(source, pictures):
    """U+202F, a narrow space, stands before AM and PM on one system."""
    name = "Screenshot 2026-01-01 at 9.41.00\u202fAM.png"
    packed = pack(source, pictures[:1], [name], steps=4)
    assert read_archive(packed.data).names == [name]


def test_names_are_counted_before_they_are_listed():
    """Thousands of empty names deflate to nothing and took a hundred times the memory."""
    count = 1 << 14
    archive = Archive(b"\0" * 4, 4, [Kind(1, 1, False)] * count, [""] * (60 * count), 0,
                      np.ones(1, np.uint32))  # fmt: skip
    data = archive.pack()
    tracemalloc.start()
    with pytest.raises(Corrupt, match=f"{count} were expected"):
        read_archive(data)
    assert tracemalloc.get_traced_memory()[1] < 20 * 60 * count
    tracemalloc.stop()


def test_names_do_not_inflate_without_bound():
    """A deflated gigabyte is refused before it takes memory."""
    archive = Archive(b"\0" * 4, 4, [Kind(1, 1, False)], ["x" * 10**7], 0, np.ones(1, np.uint32))
    with pytest.raises(Corrupt, match="names"):
        read_archive(archive.pack())


def test_bad_requests(source, pictures):
    with pytest.raises(ConfigError, match="0 pictures"):
        pack(source, [])
    with pytest.raises(ConfigError, match="1 names for 5 pictures"):
        pack(source, pictures, ["a"])
    with pytest.raises(ConfigError, match="steps"):
        pack(source, pictures, steps=21)
    with pytest.raises(ConfigError, match="calibrate"):
        pack(replace(source, calibration=None), pictures)
