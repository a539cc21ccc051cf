"""Whole photographs sent once and cut, beside JPEG, WebP, AVIF and JPEG XL at equal bytes.

    pip install '.[bench]'
    python benchmarks/kodak.py --data FOLDER [--ckpt C] [--limit N] [--bpp 2] [--cuts 0.25,0.75]
                               [--effort fast] [--lossless N] [--out DIR]

Each picture becomes one stream of about `--bpp` bits a pixel, which `truncate` cuts; it is received
once, and the picture after a cut's last packet is what the cut holds. The other codecs stand at
the same bytes, between their qualities, and have a curve for the BD-rate, mean over pictures. The
first `--lossless` pictures are sent whole as well. Writes kodak.csv and kodak.png; what is done of
a picture is not done again.
"""

import io
import time
from importlib.util import find_spec
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.codec import EFFORTS, ProgressiveCodec, packet_parser
from ddpm_codec.container import read_stream, truncate
from ddpm_codec.data import list_images, read_image
from ddpm_codec.errors import ConfigError
from ddpm_codec.files import write_text
from ddpm_codec.outgoing import Target
from ddpm_codec.rate_distortion import bd_rate
from ddpm_codec.receiving import Receiver
from ddpm_codec.sending import send

PEERS = {  # with chroma at half resolution, their default, and in full, which PSNR in RGB favours
    "JPEG": ({"format": "JPEG", "optimize": True}, range(1, 96, 2)),
    "JPEG 4:4:4": ({"format": "JPEG", "optimize": True, "subsampling": 0}, range(1, 96, 2)),
    "WebP": ({"format": "WEBP", "method": 6}, range(0, 100, 3)),
}
if find_spec("pillow_avif"):
    import pillow_avif  # noqa: F401

    PEERS["AVIF"] = ({"format": "AVIF", "speed": 4}, range(5, 95, 5))
    PEERS["AVIF 4:4:4"] = ({"format": "AVIF", "speed": 4, "subsampling": "4:4:4"}, range(5, 95, 5))
if find_spec("pillow_jxl"):
    import pillow_jxl  # noqa: F401

    PEERS["JPEG XL"] = ({"format": "JXL", "effort": 7}, range(5, 96, 5))
LOSSLESS = {
    "PNG": {"format": "PNG", "optimize": True},
    "WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    "JPEG XL": {"format": "JXL", "lossless": True, "effort": 9},
}


def quality(picture, shown):
    """PSNR (dB) over all samples and SSIM (Wang et al. 2004: Gaussian window, colour mean)."""
    mse = np.mean((picture.astype(float) - shown) ** 2)
    ssim = structural_similarity(
        picture, shown, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    return {"psnr_db": 10 * np.log10(255**2 / mse), "ssim": ssim}


def receive(codec, stream):
    """The picture before and after every packet, what `close` says it is, and seconds."""
    receiver = Receiver(codec)
    began = time.perf_counter()
    seen = [shown.permute(1, 2, 0).numpy() for _, shown in receiver.feed(stream)]
    picture = receiver.close().permute(1, 2, 0).numpy()
    return seen, picture, time.perf_counter() - began


def peer_curves(name, picture, codecs):
    """Every quality of these other codecs."""
    rows = []
    for codec in codecs:
        options, qualities = PEERS[codec]
        for q in qualities:
            buffer = io.BytesIO()
            began = time.perf_counter()
            Image.fromarray(picture).save(buffer, quality=q, **options)
            seconds = time.perf_counter() - began
            shown = np.asarray(Image.open(buffer).convert("RGB"))
            rows.append({"picture": name, "codec": codec, "bytes": buffer.tell(), "send_s": seconds,
                         **quality(picture, shown)})  # fmt: skip
    return rows


def our_rows(codec, name, picture, bpp, cuts, kappa):
    """One stream; its curve from the ledger, and real cuts of it."""
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    area = picture.shape[0] * picture.shape[1]
    began = time.perf_counter()
    target = Target(max_bytes=round(bpp * area / 8))
    [sent] = send(codec, pixels, target, "trellis", kappa)
    seconds, ledger = time.perf_counter() - began, sent.ledger
    rows, bits = [], ledger.header_bits + 32
    for step in ledger.steps:
        bits += step.spent_bits + step.side_bits
        if step.psnr_db is not None:
            rows.append({"picture": name, "codec": "ddpm-codec, each packet", "bytes": bits / 8,
                         "psnr_db": step.psnr_db})  # fmt: skip
    seen, _, received = receive(codec, sent.stream)
    for cut in [*cuts, bpp]:
        short = truncate(sent.stream, round(cut * area / 8), packet_parser)
        packets = read_stream(short, packet_parser)[0].header.packets
        about = {"picture": name, "codec": "ddpm-codec", "cut_bpp": cut, "bytes": len(short)}
        if cut == bpp:
            about |= {"send_s": seconds, "receive_s": received}
        rows.append(about | quality(picture, seen[packets]))
    return rows


def lossless_rows(codec, name, picture, kappa):
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    began = time.perf_counter()
    [sent] = send(codec, pixels, Target(lossless=True), "trellis", kappa)
    seconds = time.perf_counter() - began
    _, shown, received = receive(codec, sent.stream)
    if not np.array_equal(shown, picture):
        raise AssertionError(f"{name}: pixels differ")
    rows = [{"picture": name, "codec": "ddpm-codec, lossless", "bytes": len(sent.stream),
             "send_s": seconds, "receive_s": received}]  # fmt: skip
    for peer, options in LOSSLESS.items():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, **options)
        rows.append({"picture": name, "codec": f"{peer}, lossless", "bytes": buffer.tell()})
    return rows


def at_equal_bytes(table, cut):
    """Means over pictures of every codec at the bytes that ours has at this cut: the others between
    the two qualities whose files are next to it, along the logarithm of the size. Where a codec has
    no file so small or so large, the picture is left out; `gain_db`: ours over theirs."""
    ours = table[(table.codec == "ddpm-codec") & (table.cut_bpp == cut)]
    rows = {"ddpm-codec": ours[["bpp", "psnr_db", "ssim"]].mean()}
    for peer in PEERS:
        found = []
        for row in ours.itertuples():
            theirs = table[(table.codec == peer) & (table.picture == row.picture)]
            theirs = theirs.sort_values("bytes")
            if theirs.bytes.iloc[0] <= row.bytes <= theirs.bytes.iloc[-1]:
                sizes, size = np.log(theirs.bytes), np.log(row.bytes)
                psnr, ssim = (np.interp(size, sizes, theirs[k]) for k in ("psnr_db", "ssim"))
                found.append({"bpp": row.bpp, "psnr_db": psnr, "ssim": ssim,
                              "gain_db": row.psnr_db - psnr})  # fmt: skip
        if found:
            rows[f"{peer} ({len(found)} pictures)"] = pd.DataFrame(found).mean()
            sem = pd.DataFrame(found).gain_db.sem()
            rows[f"{peer} ({len(found)} pictures)"]["gain_db_sem"] = sem
    return pd.DataFrame(rows).T


def bd_rates(table):
    """Ours against each peer, over the curve of all packets: mean and standard error."""
    for peer in PEERS:
        values = []
        for _, rows in table.groupby("picture"):
            ours, theirs = (rows[rows.codec == c] for c in ("ddpm-codec, each packet", peer))
            ours = ours[ours.bpp > 0.1]
            try:
                values.append(bd_rate(ours.bytes, ours.psnr_db, theirs.bytes, theirs.psnr_db))
            except ConfigError as error:
                print(f"{peer}: {error}")
        if len(values) > 1:
            sem = np.std(values, ddof=1) / np.sqrt(len(values))
            print(f"BD-rate (PSNR) over {peer}: {np.mean(values):+.1%} +- {sem:.1%}")
        elif values:
            print(f"BD-rate (PSNR) over {peer}: {values[0]:+.1%}")


def plot(table, path):
    """PSNR over bits a pixel, mean over pictures, where every picture has files on both sides."""
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    bpp = np.geomspace(0.02, 2.2, 100)
    for codec in ["ddpm-codec, each packet", *PEERS]:
        curves = [
            np.interp(bpp, rows.bpp, rows.psnr_db, left=np.nan, right=np.nan)
            for _, rows in table[table.codec == codec].sort_values("bpp").groupby("picture")
        ]
        axes.plot(bpp, np.mean(curves, axis=0), label=codec)
    pictures = table.picture.nunique()
    axes.set(xlabel="bits a pixel", ylabel="PSNR (dB)", title=f"mean over {pictures} photographs")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def rows_of(codec, path, out, bpp, cuts, kappa, lossless):
    """One picture's rows; what its file in `out` has already is not done again."""
    file, picture = out / f"{path.stem}.csv", read_image(path)
    done = pd.read_csv(file) if file.exists() else pd.DataFrame({"codec": []})
    rows = []
    if not (done.codec == "ddpm-codec").any():
        rows += our_rows(codec, path.stem, picture, bpp, cuts, kappa)
    if lossless and not (done.codec == "ddpm-codec, lossless").any():
        rows += lossless_rows(codec, path.stem, picture, kappa)
    rows += peer_curves(path.stem, picture, [c for c in PEERS if c not in set(done.codec)])
    table = pd.concat([done, pd.DataFrame(rows)], ignore_index=True)
    table["picture"], table["bpp"] = path.stem, 8 * table.bytes / (picture.size / 3)
    write_text(file, table.to_csv(index=False))
    return table


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--limit", type=int)
@click.option("--bpp", default=2.0, show_default=True)
@click.option("--cuts", default="0.25,0.75", show_default=True)
@click.option("--effort", type=click.Choice(list(EFFORTS)), default="fast", show_default=True)
@click.option("--lossless", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("kodak"), show_default=True)
def main(data, ckpt, limit, bpp, cuts, effort, lossless, out):
    out.mkdir(parents=True, exist_ok=True)
    cuts = [float(c) for c in cuts.split(",")]
    codec = ProgressiveCodec(load(ckpt) if ckpt else load_bundled())
    tables = []
    for number, path in enumerate(list_images(data)[:limit]):
        tables.append(rows_of(codec, path, out, bpp, cuts, EFFORTS[effort], number < lossless))
        print(tables[-1][tables[-1].codec.str.startswith("ddpm-codec")
                         & (tables[-1].codec != "ddpm-codec, each packet")].to_string(index=False),
              flush=True)  # fmt: skip
    table = pd.concat(tables)
    table.to_csv(out / "kodak.csv", index=False)
    for cut in [*cuts, bpp]:
        print(f"\nat most {cut} bits a pixel, mean over {len(tables)} pictures")
        print(at_equal_bytes(table, cut).round(4).to_string())
    print()
    bd_rates(table)
    whole = table[table.codec.str.endswith("lossless")]
    if len(whole):
        print("\nlossless, bits/dim")
        print((whole.groupby("codec").bpp.mean() / 3).round(4).to_string())
    plot(table, out / "kodak.png")


if __name__ == "__main__":
    main()
