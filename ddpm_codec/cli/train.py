"""`train`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from torch import Tensor

from ddpm_codec import checkpoint
from ddpm_codec.calibration import validate
from ddpm_codec.checkpoint import MODEL_PRESETS
from ddpm_codec.cifar10 import load_cifar10
from ddpm_codec.cli.common import (
    FilePath,
    progress_bar,
    seed_option,
)
from ddpm_codec.data import ArrayCrops, PhotoCrops
from ddpm_codec.errors import ConfigError
from ddpm_codec.files import check_writable
from ddpm_codec.objectives import Objective
from ddpm_codec.plots import plot_training
from ddpm_codec.training import TRAINING_PRESETS, Trainer, TrainingLog, bfloat16_is_faster


@click.command()
@click.option("--data", type=FilePath, required=True,
              help="Folder of photographs of any size, or `cifar10`.")  # fmt: skip
@click.option("--out", type=FilePath, required=True, help="Checkpoint to write.")
@click.option("--val", type=FilePath, help="Folder of other photographs, to validate on.")
@click.option("--preset", type=click.Choice(sorted(MODEL_PRESETS)), default="small")
@click.option("--objective", type=click.Choice(["vlb", "simple", "hybrid"]), default="vlb")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Length of the run.")
@click.option("--steps", type=click.IntRange(1), help="Length of the run.")
@click.option("--resume", type=FilePath, help="Continue this run as if it had never stopped.")
@click.option("--init", type=FilePath, help="Start from the weights of this checkpoint.")
@click.option("--batch", type=click.IntRange(1), help="Crops a step [default: the preset's].")
@click.option("--learning-rate", type=float, help="Peak rate [default: the preset's].")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@click.option("--save-minutes", default=4.0, show_default=True, help="Between checkpoints.")
@click.option("--validate-minutes", default=8.0, show_default=True, help="Between validations.")
@seed_option
def train(
    data: Path,
    out: Path,
    val: Path | None,
    save_minutes: float,
    validate_minutes: float,
    **options: Any,
) -> None:
    """Train a model on random crops of photographs.

    Writes the checkpoint every few minutes and at the end, with OUT.csv (loss, rates,
    validation bits/dim) and OUT.png beside it. Ctrl-C saves and stops; --resume goes on.
    """
    trainer, log = _trainer(**options)
    side = trainer.config.crop
    check_writable(out)
    photographs = _training_crops(data, side)
    held_out = None if val is None else _validation_crops(val, side)
    trainer.notes["data"] = data.resolve().name
    due = {"save": save_minutes * 60, "validate": validate_minutes * 60}
    last = dict.fromkeys(due, trainer.seconds)

    def is_due(what: str) -> bool:
        if trainer.seconds - last[what] < due[what]:
            return False
        last[what] = trainer.seconds
        return True

    with progress_bar("training", "img") as bar:
        bar.reset(trainer.images_left())
        try:
            for loss in trainer.run(photographs.draw):
                log.add(trainer, loss)
                bar.total = trainer.images_left() + trainer.images_here
                bar.set_postfix(loss=f"{log.loss:.4f}", refresh=False)
                bar.update(trainer.config.batch)
                if held_out is not None and is_due("validate"):
                    _validate(trainer, log, held_out)
                if is_due("save"):
                    _save(trainer, log, out)
        except KeyboardInterrupt:
            _save(trainer, log, out)
            click.echo(f"stopped at step {trainer.step}; --resume {out} goes on", err=True)
            raise
    if held_out is not None:
        _validate(trainer, log, held_out)
    _save(trainer, log, out)
    for reason in photographs.skipped:
        click.echo(f"skipped {reason}", err=True)
    click.echo(f"{out}: {trainer.step} steps in {trainer.seconds / 60:.1f} minutes")


def _training_crops(data: Path, side: int) -> PhotoCrops | ArrayCrops:
    if str(data) == "cifar10":
        return ArrayCrops(load_cifar10(train=True), side)
    return PhotoCrops(data, side)


def _trainer(
    preset: str,
    objective: Objective,
    minutes: float | None,
    steps: int | None,
    resume: Path | None,
    init: Path | None,
    batch: int | None,
    learning_rate: float | None,
    precision: str,
    seed: int,
) -> tuple[Trainer, TrainingLog]:
    if resume is not None:
        if init is not None:
            raise ConfigError("--resume and --init exclude each other")
        trainer = Trainer.resume(checkpoint.load(resume, training=True))
        if minutes or steps:
            length = replace(trainer.config, minutes=minutes or 0.0, steps=steps or 0)
            length.check()
            trainer.config = length
        return trainer, TrainingLog.read(resume.with_suffix(".csv"), trainer.step)
    config = replace(
        TRAINING_PRESETS[preset],
        objective=objective,
        minutes=minutes or 0.0,
        steps=steps or 0,
        seed=seed,
    )
    if batch is not None:
        config = replace(config, batch=batch)
    if learning_rate is not None:
        config = replace(config, learning_rate=learning_rate)
    config.check()
    fast = precision == "bfloat16" or (precision == "auto" and bfloat16_is_faster())
    start = None if init is None else checkpoint.load(init)
    model = MODEL_PRESETS[preset]
    return Trainer.start(model, replace(config, bfloat16=fast), start), TrainingLog()


def _validation_crops(folder: Path, side: int) -> Tensor:
    return PhotoCrops(folder, side).draw(256, torch.Generator().manual_seed(0))


def _validate(trainer: Trainer, log: TrainingLog, crops: Tensor) -> None:
    report = validate(trainer.checkpoint(with_state=False).model(), crops).as_json()
    log.validated(trainer, report["total_bpd"])
    click.echo(
        f"step {trainer.step}, {trainer.seconds / 60:.1f} min, loss {log.loss:.4f}, validation "
        f"{report['total_bpd']:.4f} bits/dim = {report['rate_bpd']:.4f} rate "
        f"+ {report['decoder_bpd']:.4f} decoder",
        err=True,
    )


def _save(trainer: Trainer, log: TrainingLog, out: Path) -> None:
    checkpoint.save(trainer.checkpoint(), out)
    log.write(out.with_suffix(".csv"))
    if len(log.rows) > 1:
        plot_training(pd.DataFrame(log.rows), out.with_suffix(".png"))
