"""Images: files, folders and arrays in, uint8 out.

Only 8-bit colour comes out of here, (N,H,W,3) or (N,3,H,W) as each function says. Grey and
palette pictures become RGB; what has no faithful 8-bit RGB form is refused with the reason.
"""

import warnings
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddpm_codec.cifar10 import load_cifar10
from ddpm_codec.errors import DataError
from ddpm_codec.files import atomic

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 1 << 27
"""Pictures with more pixels are refused before they are decoded."""

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""Pillow's names of those; its other decoders drop bits in silence, or start other programs."""
_MOST_HEADER_BYTES = 10_000
NAMED = ("sample", "cifar10", "cifar10-train")


def read_image(path: Path) -> Pixels:
    """(H,W,3) the picture in `path`, upright (EXIF orientation applied).

    Raises DataError for a file that is no picture, is damaged, has more than `MAX_PIXELS`
    pixels, several frames, 16 bits a sample, CMYK, or an alpha channel that is not opaque.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                _check_header(picture, path)
                picture.load()
                return np.asarray(_to_rgb(ImageOps.exif_transpose(picture), path))
    except DataError:
        raise
    except Exception as error:  # whatever a decoder trips over: struct.error, TypeError, ...
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{path}: {error.strerror.lower()}") from error
        raise DataError(f"{path}: not a picture that can be read ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_header(picture: Image.Image, path: Path) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} pixels; at most {MAX_PIXELS} are read")
    # A JPEG with a preview or a gain map behind the photograph, as phones write them, is an MPO.
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
        raise DataError(f"{path}: an animation; save the frame that you want as a picture")
    if _is_deep(picture):
        raise DataError(f"{path}: more than 8 bits a sample; convert it to 8-bit RGB first")
    if picture.mode in ("CMYK", "LAB", "HSV"):
        raise DataError(
            f"{path}: {picture.mode} has no faithful RGB form; convert it to 8-bit RGB first"
        )


def _is_deep(picture: Image.Image) -> bool:
    """Whether samples have more than 8 bits. Pillow opens 16-bit colour as mode RGB and drops the
    low bits; the decoder's arguments tell: the raw mode, or a PPM's largest sample."""
    arguments = [tile[3] for tile in getattr(picture, "tile", ())]
    largest = [a[1] for a in arguments if picture.format == "PPM" and isinstance(a, tuple)]
    return (
        picture.mode.startswith(("I", "F"))
        or ";16" in " ".join(map(str, arguments))
        or any(isinstance(most, int) and most > 255 for most in largest)
    )


def _to_rgb(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        if opaque.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{path}: has transparent pixels; flatten it onto a background first")
        return opaque.convert("RGB")
    return picture.convert("RGB")


def write_image(path: Path, pixels: Pixels) -> None:
    """Write (H,W,3) or, grey, (H,W) uint8 as PNG. DataError when `path` can't be written."""
    with atomic(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")


def list_images(folder: Path) -> list[Path]:
    """The pictures directly inside `folder`, by suffix, sorted by name. DataError if none."""
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise DataError(f"{folder}: {(error.strerror or str(error)).lower()}") from error
    if not paths:
        raise DataError(f"{folder}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
    return paths


def load_batch(data: str, limit: int | None = None, crop: int | None = None) -> Tensor:
    """(N,3,H,W) uint8 the first `limit` images of `data`.

    `data`: a folder of images, an `.npz` with `x` uint8 (N,H,W,3), or a name in `NAMED`: the
    bundled patches, or CIFAR-10's test or training pictures.
    `crop` cuts a centred square of that side. Images must be of one size then; DataError
    says which one is not.
    """
    if data.startswith("cifar10") and data in NAMED:
        images = load_cifar10(train=data == "cifar10-train", limit=limit)
    elif data in NAMED:
        with resources.as_file(resources.files("ddpm_codec") / "assets" / f"{data}.npz") as path:
            images = _read_npz(path, limit)
    elif Path(data).suffix == ".npz":
        images = _read_npz(Path(data), limit)
    elif Path(data).is_dir():
        images = _stack(list_images(Path(data))[:limit], crop)
    else:
        raise DataError(
            f"{data}: no such folder or .npz, and not a data set's name ({', '.join(NAMED)})"
        )
    cut = images if crop is None else _centre(images, crop, data)
    return torch.from_numpy(np.array(cut.transpose(0, 3, 1, 2), order="C"))


def _centre(images: Pixels, side: int, name: object) -> Pixels:
    height, width = images.shape[-3:-1]
    if min(height, width) < side:
        raise DataError(f"{name}: {width}x{height} is smaller than a crop of {side}x{side}")
    y, x = (height - side) // 2, (width - side) // 2
    return images[..., y : y + side, x : x + side, :]


def _stack(paths: list[Path], crop: int | None) -> Pixels:
    images = []
    for path in paths:
        image = read_image(path)
        images.append(image if crop is None else _centre(image, crop, path))
        if images[-1].shape != images[0].shape:
            (h0, w0), (h, w) = images[0].shape[:2], images[-1].shape[:2]
            raise DataError(
                f"{path}: {w}x{h}, but {paths[0].name} is {w0}x{h0}; images of one size are "
                "expected (--crop N cuts centred squares)"
            )
    return np.stack(images)


def _read_npz(path: Path, limit: int | None) -> Pixels:
    """(N,H,W,3) the first `limit` images; the header is checked before anything is read."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as member:
            version = np.lib.format.read_magic(member)
            if version != (1, 0):  # what such arrays have; 2.0 has headers of up to 4 GiB
                raise DataError(f"{path}: x is an array of format {version}; expected (1, 0)")
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(
                member, _MOST_HEADER_BYTES
            )
            count = _check_array(path, shape, dtype, fortran_order, limit)
            size = count * int(np.prod(shape[1:]))
            raw = member.read(size)
    except KeyError as error:
        raise DataError(f"{path}: no array named x; expected x uint8 (N,H,W,3)") from error
    except DataError:
        raise
    except Exception as error:  # whatever numpy's parser and zipfile's decoders trip over
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise DataError(f"{path}: can't be read as an .npz ({reason})") from error
    if len(raw) != size:
        raise DataError(f"{path}: x ends after {len(raw)} of {size} bytes")
    return np.frombuffer(raw, dtype=np.uint8).reshape(count, *shape[1:])


def _check_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, fortran_order: bool, limit: int | None
) -> int:
    if dtype != np.uint8 or fortran_order or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise DataError(f"{path}: x is {dtype} {shape}; expected uint8 (N,H,W,3), row by row")
    count = shape[0] if limit is None else min(shape[0], limit)
    if count * shape[1] * shape[2] > MAX_PIXELS:
        raise DataError(f"{path}: x holds more than {MAX_PIXELS} pixels; lower --limit")
    return count
