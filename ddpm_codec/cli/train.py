"""`train`."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import click
import pandas as pd
import torch
from click.core import ParameterSource
from torch import Tensor

from ddpm_codec import checkpoint
from ddpm_codec.calibration import check_side, validate
from ddpm_codec.checkpoint import MODEL_PRESETS, ModelConfig
from ddpm_codec.cifar10 import load_cifar10
from ddpm_codec.cli.common import (
    FilePath,
    Finite,
    device_option,
    draw_crops,
    echo_skipped,
    progress_bar,
    seed_option,
)
from ddpm_codec.crops import ArrayCrops, Crops, PhotoCrops, VariedCrops
from ddpm_codec.distributed import Workers, join
from ddpm_codec.errors import ConfigError
from ddpm_codec.files import check_outputs
from ddpm_codec.optimizers import OptimizerName
from ddpm_codec.plots import plot_training
from ddpm_codec.precision import bfloat16_is_faster
from ddpm_codec.training import (
    TRAINING_PRESETS,
    Trainer,
    TrainingConfig,
    TrainingLog,
)

VALIDATION_CROPS = 256
_BESIDE = (".csv", ".png")


@click.command()
@click.option("--data", type=FilePath, required=True,
              help="Folder of photographs of any size, or `cifar10`.")  # fmt: skip
@click.option("--out", type=FilePath, required=True, help="Checkpoint to write.")
@click.option("--val", type=FilePath, help="Folder of other photographs, to validate on.")
@click.option("--preset", type=click.Choice(sorted(MODEL_PRESETS)), default="small")
@click.option("--objective", type=click.Choice(["vlb", "simple", "hybrid"]), default="vlb")
@click.option("--learned-variance", is_flag=True,
              help="Learn the variance between beta_tilde and beta.")  # fmt: skip
@click.option("--minutes", type=Finite(0, min_open=True), help="Length of the run.")
@click.option("--steps", type=click.IntRange(1), help="Length of the run.")
@click.option("--resume", type=FilePath, help="Continue this run as if it had never stopped.")
@click.option("--init", type=FilePath,
              help="Start from these weights; without --preset, with their network.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), help="Crops a step [default: the preset's].")
@click.option("--accumulate", type=click.IntRange(1), help="Parts of a batch, to save memory.")
@click.option("--optimizer", type=click.Choice(get_args(OptimizerName)),
              help="[default: the preset's]")  # fmt: skip
@click.option("--learning-rate", type=Finite(0, 1, min_open=True),
              help="Peak rate of Adam [default: the preset's].")  # fmt: skip
@click.option("--muon-rate", type=Finite(0, 1, min_open=True),
              help="Peak rate of Muon [default: the preset's].")  # fmt: skip
@click.option("--decay", type=Finite(0, 1),
              help="Last share of the run, in which rates fall [default: preset's].")  # fmt: skip
@click.option("--enlarged", type=Finite(0, 1),
              help="Share of the crops to enlarge, up to twice [default: 0].")  # fmt: skip
@click.option("--subsampled", type=Finite(0, 1),
              help="Share of the crops to lose half of their chroma's resolution "
                   "[default: 0].")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@click.option("--save-minutes", type=Finite(0), default=4.0, show_default=True,
              help="Between checkpoints.")  # fmt: skip
@click.option("--validate-minutes", type=Finite(0), default=8.0, show_default=True,
              help="Between validations.")  # fmt: skip
@device_option
@seed_option
def train(
    data: Path,
    out: Path,
    val: Path | None,
    save_minutes: float,
    validate_minutes: float,
    device: str,
    **options: Any,
) -> None:
    """Train a model on random crops of photographs.

    Writes the checkpoint every few minutes and at the end, and beside it, with .csv and .png in
    place of its suffix, a log (loss, rates, validation bits/dim) and a plot of it. Ctrl-C saves and
    stops; --resume goes on. Under torchrun each process does its share of every batch.
    """
    trainer, log = _trainer(join(device), _given(), **options)
    check_outputs([out, *(out.with_suffix(suffix) for suffix in _BESIDE)])
    photographs = _training_crops(data, trainer.config)
    trainer.notes["data"] = data.resolve().name
    held_out = None if val is None else _validation_crops(val, trainer.config.crop)
    run = _Run(trainer, log, out, held_out)
    save, validate = _Timer(save_minutes * 60), _Timer(validate_minutes * 60)
    with progress_bar("training", "img", hidden=not run.leads) as bar:
        bar.reset(trainer.images_left())
        try:
            for loss in trainer.run(photographs.draw):
                log.add(trainer, loss)
                bar.total = trainer.images_left() + trainer.images_here
                bar.set_postfix(loss=f"{log.loss:.4f}", refresh=False)
                bar.update(trainer.config.batch)
                if validate.rings(trainer.seconds):
                    run.validate()
                if save.rings(trainer.seconds):
                    run.save()
        except KeyboardInterrupt:
            run.save()
            echo_skipped(photographs.skipped)
            click.echo(f"stopped at step {trainer.step}; --resume {out} goes on", err=True)
            raise
    run.save()  # first of all: the validation takes minutes, and somebody may have enough
    if run.crops is not None:
        run.validate()
        run.save()
    if run.leads:
        echo_skipped(photographs.skipped)
        click.echo(f"{out}: {trainer.step} steps in {trainer.seconds / 60:.1f} minutes")


class _Timer:
    """Rings every so many seconds of training; the first period begins when it is first asked."""

    def __init__(self, period: float) -> None:
        self._period, self._last = period, math.nan

    def rings(self, seconds: float) -> bool:
        """Whether a period has passed since the last ring."""
        if math.isnan(self._last):
            self._last = seconds
        if seconds - self._last < self._period:
            return False
        self._last = seconds
        return True


@dataclass
class _Run:
    """What the leading process does at a pause, while the others go on to wait for it."""

    trainer: Trainer
    log: TrainingLog
    out: Path
    crops: Tensor | None

    @property
    def leads(self) -> bool:
        return self.trainer.workers.leads

    def validate(self) -> None:
        """The bound of the validation crops, printed and noted in the log."""
        if self.crops is None or not self.leads:
            return
        trainer = self.trainer
        model = trainer.checkpoint(with_state=False).model(device=trainer.workers.device)
        report = validate(model, self.crops).as_json()
        self.log.validated(trainer, report["total_bpd"])
        click.echo(
            f"step {trainer.step}, {trainer.seconds / 60:.1f} min, loss {self.log.loss:.4f}, "
            f"validation {report['total_bpd']:.4f} bits/dim = {report['rate_bpd']:.4f} rate "
            f"+ {report['decoder_bpd']:.4f} decoder",
            err=True,
        )

    def save(self) -> None:
        """Checkpoint, log and plot."""
        if not self.leads:
            return
        checkpoint.save(self.trainer.checkpoint(), self.out)
        self.log.write(self.out.with_suffix(".csv"), self.trainer)
        if len(self.log.rows) > 1:
            plot_training(pd.DataFrame(self.log.rows), self.out.with_suffix(".png"))


def _training_crops(data: Path, config: TrainingConfig) -> Crops:
    crops: Crops = (
        ArrayCrops(load_cifar10(train=True), config.crop)
        if str(data) == "cifar10"
        else PhotoCrops(data, config.crop)
    )
    if not (config.enlarged or config.subsampled):
        return crops
    return VariedCrops(crops, config.enlarged, config.subsampled)


def _given() -> dict[str, Any]:
    """The options of the command line, without defaults."""
    context = click.get_current_context()
    return {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _trainer(
    workers: Workers,
    given: Mapping[str, Any],
    preset: str,
    minutes: float | None,
    steps: int | None,
    resume: Path | None,
    init: Path | None,
    precision: str,
    learned_variance: bool,
    **changes: Any,
) -> tuple[Trainer, TrainingLog]:
    """A new run, or one that goes on; `changes` to the preset that are None are none."""
    if resume is not None:
        if init is not None:
            raise ConfigError("--resume and --init exclude each other")
        trainer = Trainer.resume(checkpoint.load(resume, training=True), workers)
        _continue(trainer, given)
        return trainer, TrainingLog.read(resume.with_suffix(".csv"), trainer.step)
    asked = {name: value for name, value in changes.items() if value is not None}
    config = replace(TRAINING_PRESETS[preset], minutes=minutes or 0.0, steps=steps or 0, **asked)
    config.check()
    start = None if init is None else checkpoint.load(init)
    fast, muon = [precision == "bfloat16"] * 2
    if precision == "auto":
        fast, muon = _bfloat16_is_faster(workers)
    config = replace(config, bfloat16=fast, muon_bfloat16=muon)
    model = _model(preset, learned_variance)
    if start is not None and not {"preset", "learned_variance"} & given.keys():
        model = start.config
    return Trainer.start(model, config, start, workers), TrainingLog()


def _continue(trainer: Trainer, given: Mapping[str, Any]) -> None:
    """Change what may change in a run that goes on; ConfigError for another of the rest."""
    length = {name: given[name] for name in ("minutes", "steps") if name in given}
    if length:
        trainer.config = replace(trainer.config, **({"minutes": 0.0, "steps": 0} | length))
    free = {name: given[name] for name in ("decay", "accumulate") if name in given}
    trainer.config = replace(trainer.config, **free)
    trainer.config.check()
    learned = trainer.model.variance_head == "range"
    presets = [name for name in MODEL_PRESETS if _model(name, learned) == trainer.model]
    has = asdict(trainer.config) | {
        "precision": "bfloat16" if trainer.config.bfloat16 else "float32",
        "learned_variance": learned,
        "preset": presets[0] if presets else "another",
    }
    for name in has.keys() & given.keys():
        if given[name] not in (has[name], "auto"):
            raise ConfigError(
                f"--{name.replace('_', '-')} {given[name]}: the run of --resume has {has[name]}; "
                "leave it, or start another run with --init"
            )


def _model(preset: str, learned_variance: bool) -> ModelConfig:
    model = MODEL_PRESETS[preset]
    if not learned_variance:
        return model
    return replace(model, unet=replace(model.unet, log_variance=True), variance_head="range")


def _bfloat16_is_faster(workers: Workers) -> tuple[bool, bool]:
    """On the leading process, which decides for all."""
    here = bfloat16_is_faster(workers.device) if workers.leads else (False, False)
    network, muon = workers.sums(here)
    return bool(network), bool(muon)


def _validation_crops(folder: Path, side: int) -> Tensor:
    check_side(side)
    return draw_crops(folder, side, VALIDATION_CROPS, torch.Generator().manual_seed(0))
