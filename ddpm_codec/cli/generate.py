"""`sample`."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ddpm_codec.cli.common import FilePath, ckpt_option, load_checkpoint, progress_bar, seed_option
from ddpm_codec.cli.measure import variance_option
from ddpm_codec.data import write_image
from ddpm_codec.diffusion import DiffusionModel, ancestral_sample
from ddpm_codec.files import check_writable
from ddpm_codec.units import to_uint8


@click.command()
@ckpt_option
@click.option("-n", "--number", type=click.IntRange(1, 4096), default=16, show_default=True)
@click.option(
    "--side",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Side of the pictures in pixels.",
)
@click.option(
    "--steps",
    type=click.IntRange(2),
    default=250,
    show_default=True,
    help="Steps of the chain, even in log SNR.",
)
@variance_option
@seed_option
@click.option("-o", "--out", type=FilePath, default=Path("samples.png"), show_default=True)
def sample(
    ckpt: Path | None, number: int, side: int, steps: int, variance: Any, seed: int, out: Path
) -> None:
    """Draw pictures from the model (Algorithm 2) and write them as one PNG sheet."""
    check_writable(out)
    source = load_checkpoint(ckpt)
    pictures = draw_samples(source.model(variance), number, side, steps, seed)
    write_image(out, sheet(pictures))
    click.echo(f"{out}: {number} samples of {side}x{side}, {steps} steps")


def draw_samples(
    model: DiffusionModel, number: int, side: int, steps: int, seed: int
) -> torch.Tensor:
    """(number,3,side,side) uint8 samples, with a progress bar."""
    grid = model.schedule.log_snr_grid(min(steps, model.schedule.T))
    generator = torch.Generator().manual_seed(seed)
    walk = ancestral_sample(model, (number, 3, side, side), grid, generator)
    with progress_bar("sampling", "step") as bar:
        bar.reset(len(grid))
        while True:
            try:
                next(walk)
            except StopIteration as stop:
                return to_uint8(stop.value)
            bar.update(1)


def sheet(pictures: torch.Tensor) -> Any:
    """(N,3,H,W) uint8 pictures as one (H',W',3) picture, in rows of about sqrt(N)."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    height, width = pictures.shape[2:]
    canvas = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for i, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        y, x = i // columns * height, i % columns * width
        canvas[y : y + height, x : x + width] = picture
    return canvas
