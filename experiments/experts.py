"""Does it pay to split the noise levels among experts, at equal minutes and equal cost a call?

    python experiments/experts.py --data TRAIN --val VAL [--ckpt C] [--minutes M]
                                  [--log-snr '3'] [--out DIR]

Both go on from the weights of C (the bundled model) for M minutes: the network as it is, and one
whose upper half is there once for every stretch of log SNR between the given cuts. Validated on
the same crops, timesteps and noise. Runs are kept in DIR, with experts.csv.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

from ddpm_codec import checkpoint
from ddpm_codec.calibration import validate
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.crops import PhotoCrops
from ddpm_codec.memory import keep_freed_memory
from ddpm_codec.precision import bfloat16_is_faster
from ddpm_codec.schedule import Schedule
from ddpm_codec.training import TRAINING_PRESETS, Trainer

VALIDATION_CROPS = 256


def trained(path, config, rule, source, photographs):
    """The checkpoint after a run, made where it is not kept."""
    if not path.exists():
        trainer = Trainer.start(config, rule, source)
        for _ in trainer.run(photographs.draw):
            pass
        checkpoint.save(trainer.checkpoint(with_state=False), path)
    return load(path)


def cuts_at(schedule, log_snr):
    """The timesteps nearest to these log SNR, rising."""
    return tuple(
        int(np.argmin(np.abs(schedule.log_snr[1:] - cut))) + 1 for cut in sorted(log_snr)[::-1]
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--val", type=click.Path(path_type=Path), required=True)
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--minutes", default=12.0, show_default=True)
@click.option("--log-snr", default="3", show_default=True, help="Cuts, separated by commas.")
@click.option("--batch", default=64, show_default=True)
@click.option("--muon-rate", default=0.01, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("experts"))
def main(data, val, ckpt, minutes, log_snr, batch, muon_rate, learning_rate, out):
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    source = load(ckpt) if ckpt else load_bundled()
    source.weights = {k: v.float() for k, v in source.weights.items()}
    fast, muon = bfloat16_is_faster(torch.device("cpu"))
    rule = replace(
        TRAINING_PRESETS["small"], minutes=minutes, batch=batch, decay=0.9, muon_rate=muon_rate,
        learning_rate=learning_rate, bfloat16=fast, muon_bfloat16=muon,
    )  # fmt: skip
    photographs = PhotoCrops(data, rule.crop)
    crops = PhotoCrops(val, rule.crop).draw(VALIDATION_CROPS, torch.Generator().manual_seed(0))
    cuts = cuts_at(Schedule(source.config.schedule), [float(x) for x in log_snr.split(",")])
    several = replace(source.config, unet=replace(source.config.unet, experts=cuts))
    names = ("start", "one network", f"experts up to t = {', '.join(map(str, cuts))}, and above")
    rows = []
    for name, config in zip(names, (None, source.config, several), strict=True):
        path = out / f"experts_{len(cuts) if config is several else 0}.safetensors"
        after = trained(path, config, rule, source, photographs) if config else source
        report = validate(after.model("beta_tilde"), crops).as_json()
        rows.append({"model": name} | {k: report[f"{k}_bpd"] for k in ("total", "rate", "decoder")})
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(out / "experts.csv", index=False)


if __name__ == "__main__":
    main()
