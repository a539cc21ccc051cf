"""`sample` and `interpolate`."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ddpm_codec.cli.common import FilePath, ckpt_option, load_checkpoint, progress_bar, seed_option
from ddpm_codec.cli.measure import variance_option
from ddpm_codec.data import read_image, write_image
from ddpm_codec.diffusion import DiffusionModel
from ddpm_codec.errors import ConfigError
from ddpm_codec.files import check_outputs
from ddpm_codec.reverse import ancestral_sample
from ddpm_codec.schedule import Indices
from ddpm_codec.units import from_uint8, to_uint8


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
    check_outputs([out], [ckpt])
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
    return _walk_down(
        model, torch.randn(number, 3, side, side, generator=generator), grid, generator
    )


def _walk_down(
    model: DiffusionModel, x_t: torch.Tensor, grid: Indices, generator: torch.Generator
) -> torch.Tensor:
    """(N,3,H,W) uint8 x_0 by Algorithm 2 from x_t at grid[0], with a progress bar."""
    walk = ancestral_sample(model, x_t, grid, generator)
    with progress_bar("sampling", "step") as bar:
        bar.reset(len(grid))
        while True:
            try:
                next(walk)
            except StopIteration as stop:
                return to_uint8(stop.value)
            bar.update(1)


@click.command()
@click.argument("first", type=FilePath)
@click.argument("second", type=FilePath)
@ckpt_option
@click.option("-t", "t", type=click.IntRange(1), default=500, show_default=True,
              help="Timestep whose x_t is mixed.")  # fmt: skip
@click.option("-n", "--number", type=click.IntRange(2, 64), default=9, show_default=True)
@click.option("--steps", type=click.IntRange(2), default=250, show_default=True,
              help="Steps of the whole chain, even in log SNR.")  # fmt: skip
@variance_option
@seed_option
@click.option("-o", "--out", type=FilePath, default=Path("interpolation.png"), show_default=True)
def interpolate(
    first: Path,
    second: Path,
    ckpt: Path | None,
    t: int,
    number: int,
    steps: int,
    variance: Any,
    seed: int,
    out: Path,
) -> None:
    """Mix two pictures in latent space (Section 4.4): x_t of both, with one noise each, mixed
    linearly, then decoded by the reverse process. Writes one row: FIRST, the mixtures from it to
    SECOND, SECOND. Pictures of one size."""
    check_outputs([out], [first, second, ckpt])
    model = load_checkpoint(ckpt).model(variance)
    if t > model.schedule.T:
        raise ConfigError(f"-t {t}: this model has timesteps 1 to {model.schedule.T}")
    pictures = [torch.from_numpy(read_image(p).copy()).permute(2, 0, 1) for p in (first, second)]
    if pictures[0].shape != pictures[1].shape:
        sizes = " and ".join(f"{p.shape[2]}x{p.shape[1]}" for p in pictures)
        raise ConfigError(f"pictures of {sizes}: two of one size are expected")
    ends, generator = torch.stack(pictures), torch.Generator().manual_seed(seed)
    x_0 = from_uint8(ends)
    noise = torch.randn(x_0.shape, generator=generator)
    x_t = model.q_sample(x_0, torch.full((2,), t), noise)
    share = torch.linspace(0, 1, number).view(-1, 1, 1, 1)
    mixed = (1 - share) * x_t[:1] + share * x_t[1:]
    grid = model.schedule.log_snr_grid(min(steps, model.schedule.T))
    row = _walk_down(model, mixed, np.append(t, grid[grid < t]), generator)
    row = torch.cat([ends[:1], row, ends[1:]])
    write_image(out, np.concatenate(list(row.permute(0, 2, 3, 1).numpy()), axis=1))
    click.echo(f"{out}: {number} mixtures at t = {t}")


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
