"""Random cuts and random flipped bits of one complete lossless stream: outcomes by class.

python benchmarks/damage.py [--cuts N] [--flips N]
"""

from collections import Counter
from pathlib import Path

import click
import numpy as np

from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.codec import ProgressiveCodec
from ddpm_codec.data import load_batch
from ddpm_codec.errors import BitstreamError
from ddpm_codec.outgoing import Target, psnr_db
from ddpm_codec.receiving import Receiver
from ddpm_codec.sending import send


def outcome(codec, data):
    """(the class of what happened, the receiver's last picture)."""
    receiver = Receiver(codec)
    try:
        list(receiver.feed(data))
        receiver.close()
    except BitstreamError as error:
        return type(error).__name__, receiver.picture
    return "no error", receiver.picture


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--cuts", default=200, show_default=True)
@click.option("--flips", default=200, show_default=True)
def main(ckpt, cuts, flips):
    codec = ProgressiveCodec(load(ckpt) if ckpt else load_bundled())
    pixels = load_batch("sample")[8]
    [sent] = send(codec, pixels[None], Target(lossless=True))
    rng, size = np.random.default_rng(0), len(sent.stream)
    classes, quality = Counter(), []
    for at in rng.choice(size, min(cuts, size), replace=False):
        kind, picture = outcome(codec, sent.stream[:at])
        classes[kind + ("" if picture is not None else ", before the header's end")] += 1
        if picture is not None:
            quality.append((int(at), psnr_db(pixels, picture)))
    print(f"{cuts} cuts of {size} bytes: {dict(classes)}")
    for at, psnr in sorted(quality)[:: max(1, len(quality) // 8)]:
        print(f"  cut at byte {at:5d}: {psnr:.1f} dB")
    classes = Counter()
    for bit in rng.choice(8 * size, flips, replace=False):
        damaged = bytearray(sent.stream)
        damaged[bit // 8] ^= 1 << (bit % 8)
        classes[outcome(codec, bytes(damaged))[0]] += 1
    print(f"{flips} flipped bits: {dict(classes)}")


if __name__ == "__main__":
    main()
