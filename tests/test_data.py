"""Images in: what users expect is converted, the rest is refused by name and with a reason."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_codec.data import load_batch, read_image, write_image
from ddpm_codec.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)


def save(path, picture, **options):
    picture.save(path, **options)
    return path


def png_16_bit_colour(path):
    """A 2x2 PNG of 16 bits a sample, by hand: Pillow does not write one."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = b"".join(b"\0" + os.urandom(12) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def deep_ppm(path, most):
    """A 2x2 PPM of samples up to `most`, two bytes each, which Pillow opens as 8-bit RGB."""
    samples = RNG.integers(0, most, 12).astype(">u2").tobytes()
    path = path.with_suffix(".ppm")
    path.write_bytes(f"P6 2 2 {most}\n".encode() + samples)
    return path


def test_the_photograph_of_a_jpeg_with_a_preview_is_read(tmp_path):
    """Phones put previews or gain maps behind the photograph; Pillow calls that an MPO."""
    path, photograph = tmp_path / "a.jpg", Image.fromarray(RGB)
    photograph.save(path, format="MPO", save_all=True, append_images=[photograph.resize((5, 6))])
    photograph.save(tmp_path / "b.jpg")
    np.testing.assert_array_equal(read_image(path), read_image(tmp_path / "b.jpg"))


def test_rgb_png_round_trip(tmp_path):
    write_image(tmp_path / "a.png", RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


def test_grey_palette_and_opaque_alpha_become_rgb(tmp_path):
    rgb = Image.fromarray(RGB)
    grey = rgb.convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(save(tmp_path / "g.png", grey)), expected)
    palette = rgb.quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(read_image(save(tmp_path / "p.png", palette)), expected)
    opaque = rgb.convert("RGBA")
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", opaque)), RGB)


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "o.png", Image.fromarray(RGB), exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))


def transparent(path):
    picture = Image.fromarray(RGB).convert("RGBA")
    picture.putpixel((0, 0), (1, 2, 3, 100))
    return save(path, picture)


def animation(path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    return save(path.with_suffix(".gif"), frames[0], save_all=True, append_images=frames[1:])


def truncated(path):
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:4000])
    return path


def garbage(path):
    path.write_bytes(b"no picture at all")
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (transparent, "transparent"),
        (animation, "animation"),
        (truncated, "not a picture that can be read"),
        (garbage, "not a picture that can be read"),
        (lambda p: save(p, Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)), "8 bits"),
        (png_16_bit_colour, "8 bits"),
        (lambda p: deep_ppm(p, 1023), "8 bits"),
        (lambda p: deep_ppm(p, 65535), "8 bits"),
        (lambda p: save(p.with_suffix(".jp2"), Image.fromarray(RGB)), "not a picture that can"),
        (lambda p: save(p.with_suffix(".tif"), Image.fromarray(RGB).convert("CMYK")), "CMYK"),
        (lambda p: p, "no such file"),
        (lambda p: p.parent, "is a directory"),
    ],
)
def test_refused_pictures_are_named_with_the_reason(tmp_path, make, reason):
    path = make(tmp_path / "x.png")
    with pytest.raises(DataError, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(DataError, match=r"pixels"):
        read_image(path)


def test_npz_and_folder_give_the_same_batch(tmp_path):
    images = RNG.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=images)
    (tmp_path / "f").mkdir()
    for i, image in enumerate(images):
        write_image(tmp_path / "f" / f"{i}.png", image)
    for source in ("x.npz", "f"):
        batch = load_batch(str(tmp_path / source), limit=2)
        np.testing.assert_array_equal(batch.permute(0, 2, 3, 1).numpy(), images[:2])
    cropped = load_batch(str(tmp_path / "f"), crop=4)
    np.testing.assert_array_equal(cropped.permute(0, 2, 3, 1).numpy(), images[:, 2:6, 2:6])


def test_damaged_exif_is_one_error(tmp_path):
    """Pillow lets struct.error out of a PNG's eXIf chunk that ends early."""
    path, out = tmp_path / "x.png", io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(out, "PNG")
    data, chunk = out.getvalue(), b"eXIfII*\0"
    exif = (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(data[:33] + exif + data[33:])
    with pytest.raises(DataError, match="not a picture that can be read"):
        read_image(path)


HEADERS = {
    "header of no language": b"{'(",
    "a type of no fields": b"{'descr': (), 'fortran_order': False, 'shape': (1, 8, 8, 3)}",
    "a header with a list for a key": b"{[1]: 2}",
    "a header of 9,900 signs": b"-" * 9900 + b"1",
}


def bad_npz(path, kind):
    if kind == "pickled objects":
        np.savez(path, x=np.array([{"a": 1}], dtype=object))
    elif kind == "float":
        np.savez(path, x=np.zeros((2, 8, 8, 3)))
    elif kind == "shape":
        np.savez(path, x=np.zeros((8, 8, 3), np.uint8))
    elif kind == "name":
        np.savez(path, y=np.zeros((2, 8, 8, 3), np.uint8))
    elif kind == "pickle file":
        path.write_bytes(pickle.dumps([1, 2]))
    elif kind == "short":
        good = path.with_suffix(".good.npz")
        np.savez(good, x=np.zeros((2, 8, 8, 3), np.uint8))
        with zipfile.ZipFile(good) as z, zipfile.ZipFile(path, "w") as out:
            out.writestr("x.npy", z.read("x.npy")[:-5])
    elif kind == "negative shape":
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 3), }"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            length = len(header).to_bytes(2, "little")
            out.writestr("x.npy", b"\x93NUMPY\1\0" + length + header.encode() + bytes(1 << 20))
    elif kind in HEADERS:
        header = HEADERS[kind]
        with zipfile.ZipFile(path, "w") as out:
            length = len(header).to_bytes(2, "little")
            out.writestr("x.npy", b"\x93NUMPY\1\0" + length + header + bytes(99))
    elif kind == "damaged deflation":
        np.savez_compressed(path, x=RNG.integers(0, 9, (2, 8, 8, 3), dtype=np.uint8))
        data = bytearray(path.read_bytes())
        data[60:90] = bytes(30)
        path.write_bytes(data)
    elif kind == "damaged lzma":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as out:
            array = io.BytesIO()
            np.save(array, RNG.integers(0, 9, (2, 8, 8, 3), dtype=np.uint8))
            out.writestr("x.npy", array.getvalue())
        data = bytearray(path.read_bytes())
        data[60] ^= 255
        path.write_bytes(data)
    elif kind == "empty":
        np.savez(path, x=np.zeros((0, 8, 8, 3), np.uint8))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "pickled objects",
        "float",
        "shape",
        "negative shape",
        *HEADERS,
        "name",
        "damaged deflation",
        "damaged lzma",
        "pickle file",
        "short",
        "empty",
        "none",
    ],
)
def test_bad_npz_is_refused(tmp_path, kind):
    path = bad_npz(tmp_path / "x.npz", kind)
    with pytest.raises(DataError) as caught:
        load_batch(str(path))
    assert str(path) in str(caught.value)


def test_a_header_that_promises_terabytes_allocates_nothing(tmp_path):
    path = tmp_path / "x.npz"
    header = io.BytesIO()
    shape = (10**9, 32, 32, 3)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("x.npy", header.getvalue() + bytes(100))
    with pytest.raises(DataError, match="--limit"):
        load_batch(str(path))
    with pytest.raises(DataError, match="ends after"):
        load_batch(str(path), limit=1)


def test_a_long_header_is_not_read(tmp_path):
    """Format 2.0 has headers of up to 4 GiB, which numpy reads before it measures them."""
    path, length = tmp_path / "x.npz", 1 << 24
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x.npy", b"\x93NUMPY\2\0" + length.to_bytes(4, "little") + bytes(length))
    tracemalloc.start()
    with pytest.raises(DataError, match="format"):
        load_batch(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < length / 4


def test_folders_that_are_empty_or_mixed_are_refused(tmp_path):
    with pytest.raises(DataError, match="no pictures"):
        load_batch(str(tmp_path))
    write_image(tmp_path / "a.png", RGB)
    write_image(tmp_path / "b.png", RGB[:8])
    with pytest.raises(DataError, match=r"b\.png: 10x8"):
        load_batch(str(tmp_path))
    garbage(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"c\.png"):
        load_batch(str(tmp_path), crop=8)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match="sample"):
        load_batch("no-such-set")


def test_sample_patches():
    sample = load_batch("sample")
    assert sample.shape == (64, 3, 32, 32)
    assert sample.dtype == torch.uint8
    assert len(torch.unique(sample.flatten(1), dim=0)) == 64
