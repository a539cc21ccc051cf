"""Equal minutes of training for many architectures and training rules: which is best a second?

    python experiments/architecture_search.py --data TRAIN --val VAL [--minutes M] [--out DIR]
                                              [--variants small,wide]

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
from ddpm_codec.data import PhotoCrops
from ddpm_codec.training import TRAINING_PRESETS, Trainer, TrainingLog, bfloat16_is_faster
from ddpm_codec.unet import parameter_count
from ddpm_codec.unet_config import PRESETS

SMALL, RULE = PRESETS["small"], TRAINING_PRESETS["small"]
LEVEL = replace(SMALL, fourier=(), multipliers=(1,))
"""The best of a first round, trained with batches of 32; the second round varies it."""
VARIANTS = {
    "small": (SMALL, RULE),
    "rate 2e-3": (SMALL, replace(RULE, learning_rate=2e-3)),
    "batch 128": (SMALL, replace(RULE, batch=128)),
    "batch 32": (SMALL, replace(RULE, batch=32)),
    "64 x (1, 2)": (replace(SMALL, channels=64, multipliers=(1, 2)), RULE),
    "96 x (1)": (replace(SMALL, multipliers=(1,)), RULE),
    "96 x (1, 1, 1)": (replace(SMALL, multipliers=(1, 1, 1)), RULE),
    "64, 3 blocks": (replace(SMALL, channels=64, blocks=3), RULE),
    "128, 1 block": (replace(SMALL, channels=128, blocks=1), RULE),
    "unshuffle x4": (replace(SMALL, channels=160, multipliers=(1,), patch=4), RULE),
    "full resolution": (replace(SMALL, channels=48, multipliers=(1, 2), patch=1, blocks=1), RULE),
    "no Fourier": (replace(SMALL, fourier=()), RULE),
    "no Fourier, batch 32": (replace(SMALL, fourier=()), replace(RULE, batch=32)),
    "no Fourier, batch 32, 96 x (1)": (
        replace(SMALL, fourier=(), multipliers=(1,)),
        replace(RULE, batch=32),
    ),
    "no Fourier, batch 32, 128 x (1), 3 blocks": (
        replace(SMALL, fourier=(), multipliers=(1,), channels=128, blocks=3),
        replace(RULE, batch=32),
    ),
    "no Fourier, batch 16": (replace(SMALL, fourier=()), replace(RULE, batch=16)),
    "no Fourier, batch 32, unshuffle x4": (
        replace(SMALL, fourier=(), channels=160, multipliers=(1,), patch=4),
        replace(RULE, batch=32),
    ),
    "octaves 1..7": (replace(SMALL, fourier=tuple(range(1, 8))), RULE),
}
ROUND_2 = {
    "batch 16": (LEVEL, replace(RULE, batch=16)),
    "rate 2e-3": (LEVEL, replace(RULE, batch=32, learning_rate=2e-3)),
    "3 blocks": (replace(LEVEL, blocks=3), replace(RULE, batch=32)),
    "64 channels, 4 blocks": (replace(LEVEL, channels=64, blocks=4), replace(RULE, batch=32)),
    "beta2 0.999": (LEVEL, replace(RULE, batch=32, beta2=0.999)),
    "full resolution, 40 channels": (
        replace(LEVEL, channels=40, patch=1),
        replace(RULE, batch=32),
    ),
    "unshuffle x4, 160 channels": (
        replace(LEVEL, channels=160, patch=4),
        replace(RULE, batch=32),
    ),
}
VARIANTS |= {f"level: {name}": variant for name, variant in ROUND_2.items()}
VALIDATE_SECONDS = 240


def run(name, config, rule, photographs, crops, out):
    """Train one variant to its end, from where it was left."""
    file = "".join(c if c.isalnum() or c in ".,()" else "_" for c in name)
    path = out / f"{file}.safetensors"
    model = replace(MODEL_PRESETS["small"], unet=config)
    if path.exists():
        trainer = Trainer.resume(checkpoint.load(path, training=True))
        log = TrainingLog.read(path.with_suffix(".csv"), trainer.step)
    else:
        trainer, log = Trainer.start(model, rule), TrainingLog()

    def save():
        report = validate(trainer.checkpoint(with_state=False).model(), crops).as_json()
        log.validated(trainer, report["total_bpd"])
        checkpoint.save(trainer.checkpoint(), path)
        log.write(path.with_suffix(".csv"))
        print(f"{name}: {trainer.seconds / 60:.1f} min, step {trainer.step}, "
              f"{report['total_bpd']:.4f} = {report['rate_bpd']:.4f} + "
              f"{report['decoder_bpd']:.4f} bits/dim", flush=True)  # fmt: skip

    last, trained = trainer.seconds, trainer.progress < 1
    for loss in trainer.run(photographs.draw):
        log.add(trainer, loss)
        if trainer.seconds - last > VALIDATE_SECONDS:
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
@click.option("--out", type=click.Path(path_type=Path), default=Path("architecture_search"))
def main(data, val, minutes, variants, out):
    out.mkdir(parents=True, exist_ok=True)
    photographs = PhotoCrops(data, RULE.crop)
    crops = PhotoCrops(val, RULE.crop).draw(256, torch.Generator().manual_seed(0))
    fast = bfloat16_is_faster(torch.device("cpu"))
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    results = []
    for name in variants.split(";") if variants else VARIANTS:
        config, rule = VARIANTS[name]
        rule = replace(rule, minutes=minutes, bfloat16=fast)
        result, rows = run(name, config, rule, photographs, crops, out)
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
