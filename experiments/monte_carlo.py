"""Eq. 17 by Monte Carlo against Eq. 22 by closed forms, on a trained model.

    python experiments/monte_carlo.py [--ckpt C] [--data D] [--limit N] [--out DIR]

Eq. 17: one path x_1 .. x_T of the forward chain a picture, and along it

    -log p(x_T) - sum_t log p_theta(x_{t-1} | x_t) / q(x_t | x_{t-1}).

Eq. 22: L_T, every L_{t-1} and L_0 as closed forms, one draw of x_t for each. They have the same
expectation; the difference is paired over pictures, its standard error is over them.
"""

import math
from pathlib import Path

import click
import pandas as pd
import torch
from chain_length import bounds

from ddpm_codec.bound import standard_error
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.data import load_batch
from ddpm_codec.gaussian import DiagonalGaussian
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.units import from_uint8, nats_to_bpd

VARIANCES = ("beta", "beta_tilde", "calibrated")


def forward_path(schedule, x_0, generator):
    """(T+1, N,C,H,W) x_0 .. x_T, and (N,) sum_t log q(x_t | x_{t-1}) in nats."""
    path, nats = [x_0], torch.zeros(len(x_0), dtype=torch.float64)
    for beta in schedule.beta[1:]:
        q = DiagonalGaussian(math.sqrt(1 - beta) * path[-1], torch.tensor(float(beta)))
        path.append(q.sample(generator))
        nats += q.log_prob_nats(path[-1])
    return path, nats


def eq_17(models, pixels, generator):
    """{variance: (N,) nats}, from one path and one set of network calls."""
    first = next(iter(models.values()))
    path, forward = forward_path(first.schedule, from_uint8(pixels), generator)
    prior = DiagonalGaussian(torch.zeros_like(path[-1]), torch.tensor(1.0))
    start = forward - prior.log_prob_nats(path[-1])
    nats = {name: start.clone() for name in models}
    for t in range(first.schedule.T, 0, -1):
        t_ = torch.full((len(pixels),), t)
        estimate = first.estimate(path[t], t_)
        for name, model in models.items():
            step = ReverseStep(model, t_, path[t], estimate)
            if t > 1:
                nats[name] -= step.p(t_ - 1).log_prob_nats(model.coordinates(path[t - 1]))
            else:
                nats[name] -= step.decoder().log_prob_nats(pixels)
    return {name: value.numpy() for name, value in nats.items()}


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, default=16, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("monte_carlo"))
def main(ckpt, data, limit, out):
    out.mkdir(parents=True, exist_ok=True)
    source, pixels = (load(ckpt) if ckpt else load_bundled()), load_batch(data, limit)
    models = {name: source.model(name) for name in VARIANCES}
    generator, dims, rows = torch.Generator().manual_seed(0), pixels[0].numel(), []
    closed = bounds(source, pixels, models["beta"].schedule.T)
    for name, sampled in eq_17(models, pixels, generator).items():
        left, right = nats_to_bpd(sampled, dims), nats_to_bpd(sum(closed[name]), dims)
        error = standard_error(left - right)
        rows.append({
            "variance": name, "images": len(pixels), "eq_17_bpd": float(left.mean()),
            "eq_22_bpd": float(right.mean()), "difference_bpd": float((left - right).mean()),
            "difference_bpd_sem": error,
            "errors_apart": None if not error else abs(float((left - right).mean())) / error,
        })  # fmt: skip
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(out / "monte_carlo.csv", index=False)


if __name__ == "__main__":
    main()
