"""Equal minutes of training for many architectures and training rules: which is best a second?

    python experiments/architecture_search.py --data TRAIN --val VAL [--minutes M] [--out DIR]
                                              [--variants 'start;gated'] [--save-minutes S]

Every variant trains for `--minutes` with the learning rate of its own run decaying to the end,
and is validated on the same crops, timesteps and noise. Runs are kept in DIR: a finished one is
not run again, one that was stopped goes on. Writes search.csv and search.png. Times compare on
one machine with nothing else running on its cores.
"""

from dataclasses import replace
from pathlib import Path

import click
import matplotlib.pyplot as plt
import pandas as pd
import torch

from ddpm_codec import checkpoint
from ddpm_codec.calibration import validate
from ddpm_codec.checkpoint import MODEL_PRESETS
from ddpm_codec.crops import PhotoCrops, VariedCrops
from ddpm_codec.memory import keep_freed_memory
from ddpm_codec.precision import bfloat16_is_faster
from ddpm_codec.schedule import ScheduleConfig
from ddpm_codec.training import Trainer, TrainingConfig, TrainingLog
from ddpm_codec.unet import parameter_count
from ddpm_codec.unet_config import UNetConfig

START = UNetConfig(
    channels=96, multipliers=(1, 1), blocks=2, attention=(), norm="pixel", dropout=0.0, patch=2,
    fourier=(1, 2, 3, 4), log_variance=True,
)  # fmt: skip
PLAIN = replace(START, fourier=())
LEVEL = replace(PLAIN, multipliers=(1,))
GATED = replace(LEVEL, channels=128, blocks=4, block="gated")
MUON = TrainingConfig(batch=32)
ADAM_32 = TrainingConfig(batch=32, optimizer="adam", learning_rate=1e-3)
ADAM = replace(ADAM_32, batch=64)
VARIANTS = {
    "start": (START, ADAM),
    "rate 2e-3": (START, replace(ADAM, learning_rate=2e-3)),
    "batch 128": (START, replace(ADAM, batch=128)),
    "batch 32": (START, ADAM_32),
    "64 x (1, 2)": (replace(START, channels=64, multipliers=(1, 2)), ADAM),
    "96 x (1)": (replace(START, multipliers=(1,)), ADAM),
    "64, 3 blocks": (replace(START, channels=64, blocks=3), ADAM),
    "unshuffle x4": (replace(START, channels=160, multipliers=(1,), patch=4), ADAM),
    "full resolution": (replace(START, channels=48, multipliers=(1, 2), patch=1, blocks=1), ADAM),
    "octaves 1..7": (replace(START, fourier=tuple(range(1, 8))), ADAM),
    "no Fourier": (PLAIN, ADAM),
    "no Fourier, batch 32": (PLAIN, ADAM_32),
    "no Fourier, batch 32, 128 x (1), 3 blocks": (
        replace(LEVEL, channels=128, blocks=3),
        ADAM_32,
    ),
    "level": (LEVEL, ADAM_32),
    "level, batch 16": (LEVEL, replace(ADAM_32, batch=16)),
    "level, Adam at 2e-3": (LEVEL, replace(ADAM_32, learning_rate=2e-3)),
    "level, Muon": (LEVEL, MUON),
    "level, 128 channels, Muon": (replace(LEVEL, channels=128), MUON),
    "gated": (GATED, MUON),
    "gated, batch 64": (GATED, replace(MUON, batch=64)),
    "gated, 7 blocks": (replace(GATED, blocks=7), MUON),
    "gated, 192 channels, 2 blocks": (replace(GATED, channels=192, blocks=2), MUON),
    "gated, unshuffle x4": (replace(GATED, channels=256, patch=4), MUON),
    "gated, cosine schedule": (GATED, MUON),
    "gated, beta_1 = 2e-5": (GATED, MUON),
    "gated, varied crops": (GATED, replace(MUON, enlarged=0.2, subsampled=0.2)),
    "gated, head's loss x 4": (GATED, replace(MUON, log_variance_weight=0.4)),
    "gated, head's loss / 4": (GATED, replace(MUON, log_variance_weight=0.025)),
    "gated, full resolution": (replace(GATED, channels=64, patch=1), MUON),
    "gated, hybrid objective": (GATED, replace(MUON, objective="hybrid")),
}
"""Each round varies the best of the one before. Not all were run: see docs/model.md."""
SCHEDULES = {
    "gated, cosine schedule": ScheduleConfig("cosine"),
    "gated, beta_1 = 2e-5": ScheduleConfig(beta_1=2e-5),
}
"""Those of variants that have one of their own."""


def run(name, config, rule, photographs, crops, out, save_minutes):
    """Train one variant to its end, from where it was left."""
    file = "".join(c if c.isalnum() or c in ".,()" else "_" for c in name)
    path = out / f"{file}.safetensors"
    schedule = SCHEDULES.get(name, ScheduleConfig())
    model = replace(MODEL_PRESETS["small"], unet=config, schedule=schedule)
    if path.exists():
        trainer = Trainer.resume(checkpoint.load(path, training=True))
        log = TrainingLog.read(path.with_suffix(".csv"), trainer.step)
    else:
        trainer, log = Trainer.start(model, rule), TrainingLog()

    def save():
        report = validate(trainer.checkpoint(with_state=False).model(), crops).as_json()
        log.validated(trainer, report["total_bpd"])
        checkpoint.save(trainer.checkpoint(), path)
        log.write(path.with_suffix(".csv"), trainer)
        print(f"{name}: {trainer.seconds / 60:.1f} min, step {trainer.step}, "
              f"{report['total_bpd']:.4f} = {report['rate_bpd']:.4f} + "
              f"{report['decoder_bpd']:.4f} bits/dim", flush=True)  # fmt: skip

    last, trained = trainer.seconds, trainer.progress < 1
    for loss in trainer.run(VariedCrops(photographs, rule.enlarged, rule.subsampled).draw):
        log.add(trainer, loss)
        if trainer.seconds - last > 60 * save_minutes:
            last = trainer.seconds
            save()
    if trained:
        save()
    rows = pd.DataFrame(log.rows).dropna(subset="validation_bpd")
    return {
        "variant": name,
        "parameters": parameter_count(trainer.network),
        "minutes": trainer.seconds / 60,
        "steps": trainer.step,
        "images_per_second": trainer.step * trainer.config.batch / trainer.seconds,
        "validation_bpd": rows["validation_bpd"].iloc[-1],
    }, rows


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--val", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=12.0, show_default=True)
@click.option("--variants", help="Names, separated by semicolons [default: all].")
@click.option("--save-minutes", default=4.0, show_default=True,
              help="Of training between checkpoints, each of which is validated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("architecture_search"))
def main(data, val, minutes, variants, save_minutes, out):
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    photographs = PhotoCrops(data, MUON.crop)
    crops = PhotoCrops(val, MUON.crop).draw(256, torch.Generator().manual_seed(0))
    fast, muon = bfloat16_is_faster(torch.device("cpu"))
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    results = []
    for name in variants.split(";") if variants else VARIANTS:
        config, rule = VARIANTS[name]
        rule = replace(rule, minutes=minutes, bfloat16=fast, muon_bfloat16=muon)
        result, rows = run(name, config, rule, photographs, crops, out, save_minutes)
        results.append(result)
        axes.plot(rows["seconds"] / 60, rows["validation_bpd"], marker=".", label=name)
        table = pd.DataFrame(results).sort_values("validation_bpd")
        table.to_csv(out / "search.csv", index=False)
    print(table.to_string(index=False))
    axes.set(xlabel="minutes of training", ylabel="validation bits/dim", title="equal minutes")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.savefig(out / "search.png", dpi=130)


if __name__ == "__main__":
    main()
