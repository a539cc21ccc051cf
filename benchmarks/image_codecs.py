"""Lossless bits/dim of PNG, WebP and JPEG XL, one file a patch: what the bound stands beside.

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


@click.command()
@click.argument("data", default="sample")
@click.option("--limit", type=int)
def main(data, limit):
    images = load_batch(data, limit).permute(0, 2, 3, 1).numpy()
    dims = images[0].size
    for name, options in CODECS.items():
        bpd = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, **options)
            bpd.append(8 * buffer.tell() / dims)
        sem = np.std(bpd, ddof=1) / np.sqrt(len(bpd))
        print(f"{data}, {len(bpd)} images, {name}: {np.mean(bpd):.4f} +- {sem:.4f} bits/dim")


if __name__ == "__main__":
    main()
