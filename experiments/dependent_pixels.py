"""What the decoder gains from pixels that depend on those before them, and from which t.

    python experiments/dependent_pixels.py --data PHOTOS [--ckpt C] [--crops N] [--out FILE]

Half of N crops of PHOTOS (not trained on) fit the dependence at each t, the other half are coded:
L_0 from x_t with independent pixels (Eq. 13) and with dependent ones (`conditional.py`), and the KL
of all steps from t to 1, estimated with one draw each. The bound of a walk that ends at t differs
from that of one that ends at 1 by L_0(t) - KL - L_0(1). Bits/dim, standard errors over crops.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

from ddpm_codec.bound import standard_error, step_kl_nats
from ddpm_codec.calibration import pixel_tables
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.conditional import ConditionalGaussian
from ddpm_codec.crops import PhotoCrops
from ddpm_codec.diffusion import broadcast
from ddpm_codec.memory import keep_freed_memory
from ddpm_codec.units import from_uint8, nats_to_bpd

BATCH = 64


def views(model, pixels, t, generator):
    """Batches of (pixels, x_0, t, estimate) at one t, each crop with a draw of its own."""
    for batch in pixels.split(BATCH):
        x_0, t_ = from_uint8(batch), torch.full((len(batch),), t)
        x_t = model.q_sample(x_0, t_, torch.randn(x_0.shape, generator=generator))
        yield batch, x_0, t_, model.estimate(x_t, t_)


def decoder_nats(model, tables, pixels, t, generator):
    """L_0 from x_t in nats a crop, each (N,): with independent pixels, with dependent ones."""
    rows = []
    for batch, x_0, t_, estimate in views(model, pixels, t, generator):
        variance = model.pixel_variance(estimate, t_).expand_as(x_0)
        noise = broadcast(model.schedule.variance, t_, x_0)
        every = torch.ones(len(batch), 1, 1, 1, dtype=torch.bool)
        dependent = ConditionalGaussian(estimate.x_0_hat, variance, noise, every, *tables)
        both = model.independent_decoder(estimate, t_), dependent
        rows.append(torch.stack([-decoder.log_prob_nats(batch) for decoder in both]))
    return torch.cat(rows, dim=1).numpy()


def step_nats(model, pixels, t, generator):
    """(N,) the KL of the step from t to t - 1 in nats a crop."""
    return np.concatenate(
        [
            step_kl_nats(model, estimate, x_0, t_, t_ - 1).numpy()
            for _, x_0, t_, estimate in views(model, pixels, t, generator)
        ]
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--crops", default=384, show_default=True)
@click.option("--timesteps", default="1,2,3,5,8,12,20", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("dependent_pixels.csv"))
def main(data, ckpt, crops, timesteps, out):
    keep_freed_memory()
    model = replace((load(ckpt) if ckpt else load_bundled()).model(), dependent_pixels=False)
    generator = torch.Generator().manual_seed(0)
    pixels = PhotoCrops(data, 32).draw(crops, generator)
    train, test = pixels[: crops // 2], pixels[crops // 2 :]
    dims, walked, rows = test[0].numel(), np.zeros(len(test)), []
    wanted = sorted(int(t) for t in timesteps.split(","))
    for t in range(1, wanted[-1] + 1):
        if t > 1:
            walked = walked + step_nats(model, test, t, generator)
        if t in wanted:
            independent, dependent = decoder_nats(
                model, pixel_tables(model, train, generator, t), test, t, generator
            )
            row = {"t": t}
            for name, nats in (
                ("independent", independent), ("dependent", dependent),
                ("gain", independent - dependent), ("kl_to_1", walked),
                ("dependent_less_kl", dependent - walked),
            ):  # fmt: skip
                bpd = nats_to_bpd(nats, dims)
                row |= {name: float(bpd.mean()), f"{name}_sem": standard_error(bpd)}
            rows.append(row)
            pd.DataFrame(rows).to_csv(out, index=False)
            print("  ".join(f"{k} {v:.4f}" if k != "t" else f"t {v}" for k, v in row.items()),
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
