"""Does it pay to split the noise levels among experts, at equal minutes and equal cost a call?

    python experiments/experts.py --data TRAIN --val VAL [--ckpt C] [--minutes M]
                                  [--log-snr '4'] [--out DIR]

All start from the weights of C (the bundled model). One network goes on with every timestep for M
minutes; experts, cut at the given log SNR, share the same M minutes evenly, each with its own
timesteps. Validated on the same crops, timesteps and noise. Runs are kept in DIR, with experts.csv.
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
from ddpm_codec.data import PhotoCrops
from ddpm_codec.schedule import Schedule
from ddpm_codec.training import TRAINING_PRESETS, Trainer, bfloat16_is_faster
from ddpm_codec.unet import Prediction

VALIDATION_CROPS = 256


class Experts:
    """A denoiser that asks the first of `denoisers` for t up to `lasts[0]`, and so on."""

    def __init__(self, denoisers, lasts):
        self.denoisers, self.lasts = denoisers, torch.tensor(lasts)

    def __call__(self, x_t, t):
        chosen = torch.searchsorted(self.lasts, t)
        prediction, log_variance = torch.empty_like(x_t), torch.empty_like(x_t)
        for number, denoiser in enumerate(self.denoisers):
            mine = chosen == number
            if mine.any():
                prediction[mine], log_variance[mine] = denoiser(x_t[mine], t[mine])
        return Prediction(prediction, log_variance)


def trained(path, source, rule, photographs):
    """The checkpoint after a run, made where it is not kept."""
    if not path.exists():
        trainer = Trainer.start(source.config, rule, source)
        for _ in trainer.run(photographs.draw):
            pass
        checkpoint.save(trainer.checkpoint(with_state=False), path)
    return load(path)


def experts_of(schedule, cuts):
    """[(first, last)] timesteps, from low noise to high, cut at these log SNR."""
    ends = [int(np.argmin(np.abs(schedule.log_snr[1:] - cut))) + 1 for cut in sorted(cuts)[::-1]]
    return list(zip([1, *(end + 1 for end in ends)], [*ends, schedule.T], strict=True))


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--val", type=click.Path(path_type=Path), required=True)
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--minutes", default=12.0, show_default=True)
@click.option("--log-snr", default="4", show_default=True, help="Cuts, separated by commas.")
@click.option("--batch", default=64, show_default=True)
@click.option("--muon-rate", default=0.01, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("experts"))
def main(data, val, ckpt, minutes, log_snr, batch, muon_rate, learning_rate, out):
    out.mkdir(parents=True, exist_ok=True)
    source = load(ckpt) if ckpt else load_bundled()
    source.weights = {k: v.float() for k, v in source.weights.items()}
    rule = replace(
        TRAINING_PRESETS["small"], minutes=minutes, batch=batch, decay=0.9, muon_rate=muon_rate,
        learning_rate=learning_rate, bfloat16=bfloat16_is_faster(torch.device("cpu")),
    )  # fmt: skip
    photographs = PhotoCrops(data, rule.crop)
    crops = PhotoCrops(val, rule.crop).draw(VALIDATION_CROPS, torch.Generator().manual_seed(0))
    whole = trained(out / "one.safetensors", source, rule, photographs).model("beta_tilde")
    models = {"start": source.model("beta_tilde"), "one network": whole}
    ranges = experts_of(Schedule(source.config.schedule), [float(x) for x in log_snr.split(",")])
    parts = []
    for first, last in ranges:
        share = replace(rule, minutes=minutes / len(ranges), first=first, last=last)
        path = out / f"expert_{first}_{last}.safetensors"
        parts.append(trained(path, source, share, photographs).model().denoiser)
    split = Experts(parts, [last for _, last in ranges])
    models[f"experts for t = {', '.join(f'{a}..{b}' for a, b in ranges)}"] = replace(
        whole, denoiser=split
    )
    rows = []
    for name, model in models.items():
        report = validate(model, crops).as_json()
        rows.append({"model": name} | {k: report[f"{k}_bpd"] for k in ("total", "rate", "decoder")})
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(out / "experts.csv", index=False)


if __name__ == "__main__":
    main()
