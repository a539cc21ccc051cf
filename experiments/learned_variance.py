"""Give a trained model a learned variance: a new head for it, and some minutes of training.

    python experiments/learned_variance.py --data TRAIN --val VAL --out CKPT [--ckpt C]
                                           [--minutes M]

The mean goes on from where it was, the head starts in the middle of its range (v = 0). Calibrated
at the end on crops of VAL, so that `experiments/chain_length.py --ckpt CKPT` shows the learned
variance beside the paper's two and the measured ones, all of the same mean.
"""

from dataclasses import replace
from pathlib import Path

import click
import torch

from ddpm_codec import checkpoint
from ddpm_codec.calibration import calibrate
from ddpm_codec.checkpoint import Checkpoint, load, load_bundled
from ddpm_codec.crops import PhotoCrops
from ddpm_codec.precision import bfloat16_is_faster
from ddpm_codec.training import TRAINING_PRESETS, Trainer


def with_range_head(source):
    """`source` with its second output, or a new one, set to zero and to mean the range."""
    unet = replace(source.config.unet, log_variance=True)
    config = replace(source.config, unet=unet, variance_head="range")
    weights = {k: v.float().clone() for k, v in source.weights.items()}
    for name in ("head.weight", "head.bias"):
        first = weights[name]
        if source.config.unet.log_variance:
            first = first[: len(first) // 2]
        weights[name] = torch.cat([first, torch.zeros_like(first)])
    return Checkpoint(config, weights)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--val", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--minutes", default=8.0, show_default=True)
@click.option("--crops", default=64, show_default=True, help="To calibrate on.")
def main(data, val, out, ckpt, minutes, crops):
    start = with_range_head(load(ckpt) if ckpt else load_bundled())
    fast, muon = bfloat16_is_faster(torch.device("cpu"))
    rule = replace(
        TRAINING_PRESETS["small"], minutes=minutes, learning_rate=5e-4, muon_rate=2e-3, decay=0.8,
        log_variance_weight=0.3, bfloat16=fast, muon_bfloat16=muon,
    )  # fmt: skip
    trainer = Trainer.start(start.config, rule, start)
    for loss in trainer.run(PhotoCrops(data, rule.crop).draw):
        if trainer.step % 200 == 0:
            print(
                f"step {trainer.step}, {trainer.seconds / 60:.1f} min, loss {loss:.4f}", flush=True
            )
    trained = trainer.checkpoint(with_state=False)
    generator = torch.Generator().manual_seed(0)
    pixels = PhotoCrops(val, rule.crop).draw(crops, generator)
    grid = trained.model("beta_tilde").schedule.log_snr_grid(100)
    trained.calibration = calibrate(trained.model("beta_tilde"), pixels, generator, grid)
    checkpoint.save(trained, out)


if __name__ == "__main__":
    main()
