"""What each convention of published code costs, in bits/dim, on one model and the same noise.

    python experiments/conventions.py [--ckpt C] [--data D] [--limit N] [--out DIR]

The table of docs/conventions.md: the decoder's variance, clipping of x_0_hat, and the tanh CDF, one
after the other; differences are paired over pictures, with their standard errors.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

from ddpm_codec.bound import evaluate_bound
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.data import load_batch
from ddpm_codec.discretized import DiscretizedGaussian, TanhGaussian
from ddpm_codec.units import from_uint8, nats_to_bpd


def decoders(model, pixels):
    """{convention: (N,) bits/dim of L_0}, from one network call a picture."""
    x_0, t = from_uint8(pixels), torch.ones(len(pixels), dtype=torch.int64)
    x_1 = model.q_sample(x_0, t, torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)))
    x_0_hat = model.estimate(x_1, t).x_0_hat
    beta_1 = float(np.sqrt(model.schedule.variance[1]))
    beta_tilde_2 = float(np.sqrt(model.schedule.posterior(2, 1).variance))
    clipped = x_0_hat.clamp(-1, 1)
    kinds = {
        "exact, variance beta_1": DiscretizedGaussian(x_0_hat, torch.tensor(beta_1)),
        "exact, variance beta_tilde_2": DiscretizedGaussian(x_0_hat, torch.tensor(beta_tilde_2)),
        "clipped x_0_hat too": DiscretizedGaussian(clipped, torch.tensor(beta_tilde_2)),
        "tanh for the CDF too": TanhGaussian(clipped, torch.tensor(beta_tilde_2)),
    }
    dims = x_0[0].numel()
    return {k: nats_to_bpd(-d.log_prob_nats(pixels).numpy(), dims) for k, d in kinds.items()}


def rows_of(part, values):
    """A row a convention: the mean, and the paired difference to the one before."""
    before = None
    for name, bpd in values.items():
        change = bpd - (bpd if before is None else before)
        yield {
            "part": part,
            "convention": name,
            "bpd": bpd.mean(),
            "change": change.mean(),
            "change_sem": change.std(ddof=1) / len(bpd) ** 0.5,
        }
        before = bpd


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, default=64, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("conventions"))
def main(ckpt, data, limit, out):
    out.mkdir(parents=True, exist_ok=True)
    source, pixels = (load(ckpt) if ckpt else load_bundled()), load_batch(data, limit)
    rows = list(rows_of("decoder", decoders(source.model("beta_tilde"), pixels)))
    for variance in ("beta", "beta_tilde"):
        rates = {}
        for convention in ("exact", "openai"):
            model = replace(source.model(variance), convention=convention)
            bound = evaluate_bound(model, pixels, torch.Generator().manual_seed(0), 100)
            name = {"exact": "exact", "openai": "clipped x_0_hat"}[convention]
            rates[name] = nats_to_bpd(bound.rate_nats, bound.dims)
        rows += rows_of(f"rate, {variance}", rates)
    table = pd.DataFrame(rows)
    table.to_csv(out / "conventions.csv", index=False)
    print(table.to_string(index=False, float_format="%.5f"))


if __name__ == "__main__":
    main()
