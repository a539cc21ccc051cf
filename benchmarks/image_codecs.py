"""Lossless bits/dim of PNG, WebP and JPEG XL: what the bound and archives stand beside.

One file a patch, and all patches side by side in one picture.

pip install '.[bench]'
python benchmarks/image_codecs.py DATA.npz [--limit N]
"""

import io
from importlib.util import find_spec

import click
import numpy as np
from PIL import Image

from ddpm_codec.data import load_batch

CODECS = {
    "PNG": {"format": "PNG", "optimize": True},
    "WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
}
if find_spec("pillow_jxl"):
    import pillow_jxl  # noqa: F401

    CODECS["JPEG XL"] = {"format": "JXL", "lossless": True, "effort": 9}


def size(image, options):
    """Bytes of a picture (H,W,3) in a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **options)
    return buffer.tell()


def side_by_side(images):
    """(N,H,W,3) to one picture, as square as can be; patches that fill no row are left out."""
    columns = int(np.sqrt(len(images)))
    rows = len(images) // columns
    n, height, width, channels = images[: rows * columns].shape
    grid = images[:n].reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid).reshape(rows * height, columns * width, channels)


@click.command()
@click.argument("data", default="sample")
@click.option("--limit", type=int)
def main(data, limit):
    images = load_batch(data, limit).permute(0, 2, 3, 1).numpy()
    dims = images[0].size
    for name, options in CODECS.items():
        bpd = [8 * size(image, options) / dims for image in images]
        sem = np.std(bpd, ddof=1) / np.sqrt(len(bpd))
        one = side_by_side(images)
        print(f"{data}, {len(bpd)} images, {name}: {np.mean(bpd):.4f} +- {sem:.4f} bits/dim, "
              f"in one picture {8 * size(one, options) / one.size:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
