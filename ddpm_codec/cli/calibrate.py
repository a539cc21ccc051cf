"""`calibrate` and `plan`: what is measured on held-out pictures and kept in the checkpoint."""

from pathlib import Path
from typing import Literal

import click
import numpy as np
import torch
from torch import Tensor

from ddpm_codec import checkpoint
from ddpm_codec.calibration import calibrate
from ddpm_codec.checkpoint import Checkpoint
from ddpm_codec.cli.common import (
    FilePath,
    Timesteps,
    ckpt_option,
    data_options,
    device_option,
    draw_crops,
    load_checkpoint,
    progress_bar,
    seed_option,
)
from ddpm_codec.data import NAMED, load_batch
from ddpm_codec.distributed import CPU, join
from ddpm_codec.errors import ConfigError
from ddpm_codec.files import check_outputs
from ddpm_codec.plots import plot_plan
from ddpm_codec.relative_entropy.trellis import LEAST_KAPPA, MOST_KAPPA
from ddpm_codec.schedule import Plan
from ddpm_codec.stepping import NODES, StepTable, measure_steps, plan

MEASURED_TIMESTEPS = 256
CALIBRATION_CROPS = 256
PLANNING_PICTURES = 64


@click.command("calibrate")
@ckpt_option
@data_options
@click.option("--out", type=FilePath, help="Checkpoint to write [default: that of --ckpt].")
@click.option("--timesteps", type=Timesteps(), default=MEASURED_TIMESTEPS, show_default=True,
              help="Measure at so many, even in log SNR, or at `all`.")  # fmt: skip
@click.option(
    "--half",
    is_flag=True,
    help="Half-precision weights, no training state: to ship, under another name.",
)
@device_option
@seed_option
def calibrate_command(
    ckpt: Path | None,
    data: str,
    limit: int | None,
    crop: int | None,
    out: Path | None,
    timesteps: int | Literal["all"],
    half: bool,
    device: str,
    seed: int,
) -> None:
    """Measure the model's errors, plan the walk of streams, and store both.

    DATA should be photographs that the model was not trained on; a folder of photographs of
    any size gives --limit random crops of --crop pixels a side (256 of 32).
    """
    workers = join(device)
    out = out or ckpt
    if out is None:
        raise ConfigError("calibrating the bundled checkpoint needs --out")
    check_outputs([out], [Path(data), ckpt if half else None])
    source = load_checkpoint(ckpt, training=not half)
    generator = torch.Generator().manual_seed(seed)
    pixels = _pictures(data, limit, crop, generator)
    if half:
        source.weights = {k: v.half() for k, v in source.weights.items()}
    model = source.model("beta_tilde", workers.device)
    T = model.schedule.T
    count = T if timesteps == "all" else min(timesteps, T)
    with progress_bar("calibrating", "call") as bar:
        bar.reset(count * len(pixels))
        grid = model.schedule.log_snr_grid(count)
        source.calibration = calibrate(model, pixels, generator, grid, bar.update)
    table = _step_table(source, pixels[:PLANNING_PICTURES], generator, workers.device)
    source.plan = plan(table)
    checkpoint.save(source, out)
    rmse = 127.5 * np.sqrt(source.calibration.x_0_mse)
    click.echo(
        f"{out}: {len(pixels)} crops at {count} timesteps, a plan of {source.plan.steps} steps; "
        "RMSE of x_0_hat (0..255):"
    )
    for t in (1, 10, 100, T):
        if t <= T:
            click.echo(f"  t = {t:5d}: {rmse[t]:8.3f}")


@click.command("plan")
@ckpt_option
@data_options
@click.option("--target", type=click.Choice(["walk", "lossless"]), default="walk",
              help="What to make short: a stream down to --end, or a lossless file.")  # fmt: skip
@click.option("--end", type=click.IntRange(1), default=1, show_default=True, help="Last t.")
@click.option("--calls", type=click.IntRange(2), help="At most so many network calls.")
@click.option("--kappa", type=click.IntRange(LEAST_KAPPA, MOST_KAPPA), default=16,
              show_default=True, help="Of the trellis.")  # fmt: skip
@click.option("--out", type=FilePath, help="Checkpoint to write, with this plan.")
@click.option("--plot", type=FilePath, help="Figure to write.")
@seed_option
def plan_command(
    ckpt: Path | None,
    data: str,
    limit: int | None,
    crop: int | None,
    target: str,
    end: int,
    calls: int | None,
    kappa: int,
    out: Path | None,
    plot: Path | None,
    seed: int,
) -> None:
    """Find the steps of a walk that make files short, by dynamic programming.

    Measures the KL of every step on the pictures (64 of DATA), counts what a packet of the trellis
    coder costs for it, and prints the best walk. The plan is part of what streams depend on: a
    checkpoint with another plan reads other streams.
    """
    check_outputs([out, plot], [Path(data)])
    source = load_checkpoint(ckpt, training=out is not None)
    generator = torch.Generator().manual_seed(seed)
    pixels = _pictures(data, limit or PLANNING_PICTURES, crop, generator)
    table = _step_table(source, pixels, generator)
    found = plan(table, kappa, end, calls, lossless=target == "lossless")
    _print(table, found)
    if plot is not None:
        plot_plan(table, found, source.model("calibrated").schedule.log_snr, plot)
    if out is not None:
        source.plan = found
        checkpoint.save(source, out)


def _pictures(data: str, limit: int | None, crop: int | None, generator: torch.Generator) -> Tensor:
    """Random crops of a folder's photographs, or other data as it is."""
    if data not in NAMED and Path(data).is_dir():
        return draw_crops(Path(data), crop or 32, limit or CALIBRATION_CROPS, generator)
    return load_batch(data, limit, crop)


def _step_table(
    source: Checkpoint, pixels: Tensor, generator: torch.Generator, device: torch.device = CPU
) -> StepTable:
    with progress_bar("planning", "call") as bar:
        bar.reset(NODES * len(pixels))
        model = source.model("calibrated", device)
        return measure_steps(model, pixels, generator, progress=bar.update)


def _print(table: StepTable, found: Plan) -> None:
    """The plan's steps, means over the pictures."""
    at = np.searchsorted(-table.nodes, -found.timesteps)
    click.echo("    t ->    s     KL (bits)   words of its packet (bits)")
    kl = table.kl_bits[at[:-1], at[1:]].mean(axis=1)
    words = found.packet_bpd * table.dims
    for t, s, ideal, spent in zip(found.timesteps, found.timesteps[1:], kl, words, strict=False):
        click.echo(f"{t:5d} {s:7d} {ideal:13.1f} {spent:13.1f}")
    fine = np.diagonal(table.kl_bits, 1)[:, : at[-1]].sum(axis=1).mean()
    click.echo(
        f"{found.steps} steps: {kl.sum():.0f} bits of KL, {words.sum():.0f} bits of words a "
        f"picture of {table.dims} dimensions; {len(table.nodes) - 1} steps would have {fine:.0f}"
    )
