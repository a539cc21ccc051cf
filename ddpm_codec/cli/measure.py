"""`nll` and `rd-curve`."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import click
import pandas as pd
import torch

from ddpm_codec.bound import Bound, evaluate_bound
from ddpm_codec.checkpoint import Checkpoint
from ddpm_codec.cli.common import (
    FilePath,
    Timesteps,
    ckpt_option,
    data_options,
    device_option,
    load_checkpoint,
    progress_bar,
    reset_total,
    seed_option,
    write_json,
)
from ddpm_codec.codec import IDEAL, ProgressiveCodec
from ddpm_codec.data import load_batch
from ddpm_codec.diffusion import Convention, VarianceRule
from ddpm_codec.distributed import join
from ddpm_codec.files import check_outputs, make_folder, write_text
from ddpm_codec.plots import plot_bound, plot_rate_distortion, plot_realised
from ddpm_codec.rate_distortion import measure_curve, realised_curve, table_4

_TABLE_ROWS = 12
WALKS = (IDEAL, "mrc", "orc", "trellis")


def variance_option(command: Any) -> Any:
    """--variance of the reverse process."""
    return click.option(
        "--variance",
        type=click.Choice(get_args(VarianceRule)),
        help="Reverse variance [default: calibrated where the checkpoint is].",
    )(command)


@click.command()
@ckpt_option
@data_options
@click.option(
    "--timesteps",
    type=Timesteps(),
    default=100,
    show_default=True,
    help="Network calls an image to estimate the T-step bound with, or `all`.",
)
@click.option("--steps", type=click.IntRange(2),
              help="The bound of a chain of K steps instead; every step is computed.")  # fmt: skip
@variance_option
@click.option("--compat", type=click.Choice(["openai"]), help="Another project's conventions.")
@click.option("--independent-pixels", is_flag=True,
              help="The decoder of Eq. 13 as it is, also where the calibration knows how pixels "
                   "depend on those before them.")  # fmt: skip
@device_option
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32",
              show_default=True, help="Of the network; bfloat16 is faster on some machines and "
              "costs about 0.001 bits/dim.")  # fmt: skip
@seed_option
@click.option("--json", "json_file", type=FilePath, help="Write the numbers as JSON.")
@click.option("--plot", type=FilePath, help="Write the per-timestep plot as PNG.")
def nll(
    ckpt: Path | None,
    data: str,
    limit: int | None,
    crop: int | None,
    timesteps: int | Literal["all"],
    steps: int | None,
    variance: Any,
    compat: Convention | None,
    independent_pixels: bool,
    device: str,
    precision: str,
    seed: int,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """The variational bound in bits/dim: L_T, every L_{t-1}, L_0 and their sum.

    --compat openai computes it as improved-diffusion and guided-diffusion do, to compare
    (docs/conventions.md). Under torchrun the processes share the calls.
    """
    workers = join(device)
    check_outputs([json_file, plot], [Path(data), ckpt])
    source = load_checkpoint(ckpt)
    pixels = load_batch(data, limit, crop)
    rule: VarianceRule | None = variance or ("beta_tilde" if compat else None)
    model = source.model(rule, workers.device, precision == "bfloat16")
    if compat is not None:
        model = replace(model, convention=compat)
    if independent_pixels:
        model = replace(model, dependent_pixels=False)
    generator = torch.Generator().manual_seed(seed)
    with progress_bar("nll", "call", hidden=not workers.leads) as bar:
        bound = evaluate_bound(
            model, pixels, generator, timesteps, steps, bar.update, reset_total(bar), workers
        )
    if not workers.leads:
        return
    report = bound.as_json() | {"model": describe(source)}
    if json_file is not None:
        write_json(json_file, report)
    if plot is not None:
        plot_bound(bound, plot)
    echo_bound(bound, report)


def describe(source: Checkpoint) -> dict[str, Any]:
    """The `model` entry of the JSON reports."""
    return {
        "hash": source.hash,
        "parameterization": source.config.parameterization,
        "schedule": asdict(source.config.schedule),
    }


def echo_bound(bound: Bound, report: dict[str, Any]) -> None:
    """Print the totals and a dozen rows of the per-timestep table."""
    chain = "T-step bound" if bound.steps == bound.model.schedule.T else f"{bound.steps}-step bound"
    calls = "every timestep" if bound.timesteps == "all" else f"{bound.timesteps} calls an image"
    click.echo(
        f"{chain} of {report['images']} images of {bound.dims} dimensions, {calls}, "
        f"variance {report['variance']}\n"
    )
    click.echo("             bits/dim   standard error")
    for name, note in (
        ("total", ""), ("rate", "L_T and every L_{t-1}"), ("prior", "L_T, part of the rate"),
        ("decoder", f"L_0, {report['pixels']} pixels"),
    ):  # fmt: skip
        error = _error(report[f"{name}_bpd_sem"], 4)
        click.echo(f"  {name:8s} {report[f'{name}_bpd']:10.5f}   {error:>7s}   {note}".rstrip())
    rows = pd.DataFrame(report["per_timestep"])
    if len(rows):
        rows = rows.astype({"kl_bpd_sem": float})  # of one image all are None
        pick = sorted({round(i * (len(rows) - 1) / (_TABLE_ROWS - 1)) for i in range(_TABLE_ROWS)})
        click.echo("\n" + rows.iloc[pick].to_string(index=False, float_format="%.5f", na_rep="-"))


@click.command("rd-curve")
@ckpt_option
@data_options
@variance_option
@device_option
@seed_option
@click.option(
    "--realised",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Images to walk by the ideal coder and by real streams as well, which have the "
    "calibrated variance whatever --variance says.",
)
@click.option(
    "--out",
    type=FilePath,
    default=Path("rd"),
    show_default=True,
    help="Folder for rd.csv, rd.json and rd.png.",
)
def rd_curve(
    ckpt: Path | None,
    data: str,
    limit: int | None,
    crop: int | None,
    variance: Any,
    device: str,
    seed: int,
    realised: int,
    out: Path,
) -> None:
    """Expected rate and distortion at every t: Table 4 and Figure 5 for this model.

    With --realised N also what real walks of the first N images spend and give. Under torchrun
    the processes share the calls of the expected curve.
    """
    workers = join(device)
    make_folder(out)
    source = load_checkpoint(ckpt)
    pixels = load_batch(data, limit, crop)
    generator = torch.Generator().manual_seed(seed)
    model = source.model(variance, workers.device)
    with progress_bar("rd-curve", "call", hidden=not workers.leads) as bar:
        bound, curve = measure_curve(
            model, pixels, generator, bar.update, reset_total(bar), workers
        )
    if not workers.leads:
        return
    write_curve(source, bound, curve, out)
    echo_table_4(curve)
    click.echo(f"\n{out}/rd.csv, rd.json, rd.png")
    if realised and source.plan is not None:
        codec = ProgressiveCodec(source)
        walked = pixels[:realised]
        with progress_bar("walking", "packet") as bar:
            bar.reset(len(WALKS) * len(walked) * codec.plan.steps)
            walks = {name: realised_curve(codec, walked, name, bar.update) for name in WALKS}
        table = pd.concat([walk.assign(coder=name) for name, walk in walks.items()])
        write_text(out / "realised.csv", table.to_csv(index=False))
        plot_realised(curve, walks, out / "realised.png")
        click.echo(f"{out}/realised.csv, realised.png: walks of {len(walked)} images")


def write_curve(source: Checkpoint, bound: Bound, curve: pd.DataFrame, out: Path) -> None:
    """rd.csv, rd.json and rd.png in `out`."""
    report = bound.as_json()
    del report["per_timestep"]
    rows = curve.astype(object).where(curve.notna(), None).to_dict("records")
    write_json(out / "rd.json", report | {"curve": rows, "model": describe(source)})
    write_text(out / "rd.csv", curve.to_csv(index=False))
    plot_rate_distortion(curve, out / "rd.png", f"this model, {len(bound.rate_nats)} images")


def echo_table_4(curve: pd.DataFrame) -> None:
    """Print the ten rows of Table 4."""
    click.echo("reverse step    rate (bits/dim)         RMSE (0..255)      PSNR (dB)")
    for row in table_4(curve).itertuples():
        click.echo(
            f"{row.reverse_step:12d}   {row.rate_bpd:8.5f} +- {_error(row.rate_bpd_sem, 5)}"
            f"   {row.rmse_255:8.4f} +- {_error(row.rmse_255_sem, 4)}   {row.psnr_db:8.2f}"
        )


def _error(sem: Any, digits: int) -> str:
    """A standard error with so many digits behind the point; a dash where it is not known."""
    return f"{'-' if sem is None or math.isnan(sem) else f'{sem:.{digits}f}':>{digits + 2}s}"
