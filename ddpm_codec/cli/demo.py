"""`demo`: the tour on the bundled checkpoint and data."""

from pathlib import Path

import click
import numpy as np
import torch

from ddpm_codec.bound import evaluate_bound
from ddpm_codec.cli.common import FilePath, load_checkpoint, progress_bar, reset_total
from ddpm_codec.cli.generate import draw_samples, sheet
from ddpm_codec.cli.measure import echo_bound, echo_table_4, write_curve
from ddpm_codec.data import load_batch, write_image
from ddpm_codec.diffusion import DiffusionModel
from ddpm_codec.files import make_folder
from ddpm_codec.plots import plot_bound, plot_images
from ddpm_codec.rate_distortion import measure_curve
from ddpm_codec.units import from_uint8, to_uint8

_CURVE_IMAGES = 16
_SHEET_IMAGES = 6
_SHEET_LOG_SNR = (-4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 9.0)


@click.command()
@click.option(
    "--out", type=FilePath, default=Path("demo"), show_default=True, help="Folder for the figures."
)
def demo(out: Path) -> None:
    """The tour: bits/dim, the rate-distortion curve and samples of the bundled model."""
    make_folder(out)
    source = load_checkpoint(None)
    model, pixels = source.model(), load_batch("sample")
    generator = torch.Generator().manual_seed(0)

    click.echo("1. The bound of the bundled photo patches (ddpm-codec nll)\n")
    with progress_bar("nll", "call") as bar:
        bound = evaluate_bound(model, pixels, generator, 100, None, bar.update, reset_total(bar))
    echo_bound(bound, bound.as_json())
    plot_bound(bound, out / "nll.png")

    click.echo(f"\n2. Rate and distortion, first {_CURVE_IMAGES} patches (ddpm-codec rd-curve)\n")
    with progress_bar("rd-curve", "call") as bar:
        some = pixels[:_CURVE_IMAGES]
        full, curve = measure_curve(model, some, generator, bar.update, reset_total(bar))
    write_curve(source, full, curve, out)
    echo_table_4(curve)

    plot_reconstructions(model, pixels[:_SHEET_IMAGES], generator, out / "x_0_hat.png")
    write_image(out / "samples.png", sheet(draw_samples(model, 16, 32, 100, seed=0)))
    click.echo(f"\nLook into {out}/:")
    for name, what in (
        ("nll.png", "the bound, term by term"),
        ("rd.png", "rate and distortion against reverse time, and against each other"),
        ("x_0_hat.png", "what a receiver who holds x_t makes of the picture"),
        ("samples.png", "16 samples of the model, 100 steps"),
        ("rd.csv, rd.json", "the curve's numbers"),
    ):
        click.echo(f"  {name:16s} {what}")


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
