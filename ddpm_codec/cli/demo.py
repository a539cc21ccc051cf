"""`demo`: the tour on the bundled checkpoint and data."""

from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

from ddpm_codec.bound import evaluate_bound
from ddpm_codec.cli.common import (
    FilePath,
    load_checkpoint,
    progress_bar,
    reset_total,
    write_bytes,
    write_json,
)
from ddpm_codec.cli.generate import draw_samples, sheet
from ddpm_codec.cli.measure import echo_bound, echo_table_4, write_curve
from ddpm_codec.codec import ProgressiveCodec
from ddpm_codec.data import load_batch, write_image
from ddpm_codec.diffusion import DiffusionModel
from ddpm_codec.files import make_folder
from ddpm_codec.outgoing import Target
from ddpm_codec.plots import plot_bound, plot_images
from ddpm_codec.rate_distortion import measure_curve
from ddpm_codec.receiving import Receiver
from ddpm_codec.sending import send
from ddpm_codec.units import from_uint8, to_uint8

_BOUND_CALLS = 25
_CURVE_IMAGES = 4
_SAMPLE_STEPS = 50
_SHEET_IMAGES = 6
_SENT_IMAGE = 8
_LEDGER_ROWS = 10
_PREVIEWS = 9
_SHEET_LOG_SNR = (-4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 9.0)


@click.command()
@click.option(
    "--out", type=FilePath, default=Path("demo"), show_default=True, help="Folder for the figures."
)
def demo(out: Path) -> None:
    """The tour: bits/dim, rate and distortion, a patch sent and received, samples."""
    make_folder(out)
    source = load_checkpoint(None)
    model, pixels = source.model(), load_batch("sample")
    generator = torch.Generator().manual_seed(0)

    click.echo("1. The bound of the bundled photo patches (ddpm-codec nll)\n")
    with progress_bar("nll", "call") as bar:
        bound = evaluate_bound(
            model, pixels, generator, _BOUND_CALLS, None, bar.update, reset_total(bar)
        )
    echo_bound(bound, bound.as_json())
    plot_bound(bound, out / "nll.png")

    click.echo(f"\n2. Rate and distortion, first {_CURVE_IMAGES} patches (ddpm-codec rd-curve)\n")
    with progress_bar("rd-curve", "call") as bar:
        some = pixels[:_CURVE_IMAGES]
        full, curve = measure_curve(model, some, generator, bar.update, reset_total(bar))
    write_curve(source, full, curve, out)
    echo_table_4(curve)

    click.echo("\n3. A patch sent without loss and received again (ddpm-codec send, receive)\n")
    send_and_receive(ProgressiveCodec(source), pixels[_SENT_IMAGE], out)

    plot_reconstructions(model, pixels[:_SHEET_IMAGES], generator, out / "x_0_hat.png")
    write_image(out / "samples.png", sheet(draw_samples(model, 16, 32, _SAMPLE_STEPS, seed=0)))
    click.echo(f"\nLook into {out}/:")
    for name, what in (
        ("nll.png", "the bound, term by term"),
        ("rd.png", "rate and distortion against reverse time, and against each other"),
        ("x_0_hat.png", "what a receiver who holds x_t makes of the picture"),
        ("previews.png", "a patch as its packets arrive"),
        (
            "patch.png.ddpm",
            "its stream, for ddpm-codec receive, info and truncate",
        ),
        ("ledger.json", "where its bits went"),
        ("samples.png", f"16 samples of the model, {_SAMPLE_STEPS} steps"),
        ("rd.csv, rd.json", "the curve's numbers"),
    ):
        click.echo(f"  {name:16s} {what}")


def send_and_receive(codec: ProgressiveCodec, pixels: torch.Tensor, out: Path) -> None:
    """Send (3,H,W) uint8 without loss, receive it, print the ledger, draw the previews."""
    [sent] = send(codec, pixels[None], Target(lossless=True))
    write_bytes(out / "patch.png.ddpm", sent.stream)
    report = sent.ledger.as_json()
    write_json(out / "ledger.json", report)
    rows = pd.DataFrame(report["steps"])
    pick = np.unique(np.linspace(0, len(rows) - 1, _LEDGER_ROWS).astype(int))
    click.echo(rows.iloc[pick].to_string(index=False, float_format="%.2f"))
    receiver = Receiver(codec)
    seen = list(receiver.feed(sent.stream))
    equal = bool(torch.equal(receiver.close(), pixels))
    click.echo(
        f"\n{len(sent.stream)} bytes, {report['bpd']:.3f} bits/dim: packets "
        f"{sum(rows['spent_bits'] + rows['side_bits']):.0f} bits, x_0 {report['decoder_bits']}, "
        f"header {report['header_bits']}, checksums and padding "
        f"{report['checksum_bits'] + report['padding_bits']}; the ideal coder would spend "
        f"{report['ideal_bits']:.0f} on this walk ({report['overhead']:+.1%}); mean projection "
        f"{np.average(rows['projection'], weights=rows['kl_bits']):.3f}.\n"
        f"Every pixel received as sent: {'yes' if equal else 'NO'}"
    )
    shown = [seen[i] for i in np.linspace(0, len(seen) - 1, _PREVIEWS).astype(int)]
    pictures = torch.stack([picture for _, picture in shown] + [pixels])
    sheet_rows = pictures.permute(0, 2, 3, 1).numpy()[None]
    plot_images(sheet_rows, out / "previews.png", [f"t = {t}" for t, _ in shown] + ["x_0"])


def plot_reconstructions(
    model: DiffusionModel, pixels: torch.Tensor, generator: torch.Generator, path: Path
) -> None:
    """Rows of pictures x_0, columns of x_0_hat from x_t at rising SNR, then x_0 itself."""
    x_0, log_snr = from_uint8(pixels), model.schedule.log_snr
    columns, titles = [], []
    for wanted in _SHEET_LOG_SNR:
        t = int(np.argmin(np.abs(log_snr[1:] - wanted))) + 1
        t_ = torch.full((len(x_0),), t)
        eps = torch.randn(x_0.shape, generator=generator)
        columns.append(to_uint8(model.estimate(model.q_sample(x_0, t_, eps), t_).x_0_hat))
        titles.append(f"t = {t}")
    rows = torch.stack([*columns, pixels], dim=1).permute(0, 1, 3, 4, 2).numpy()
    plot_images(rows, path, [*titles, "x_0"])
