"""The bound of K-step chains under each reverse variance: a table and a plot.

    python experiments/chain_length.py [--ckpt C] [--data D] [--limit N] [--out DIR]

As in the literature on optimal variances (Bao et al. 2022, Table 1), with the chain even in log
SNR and every term evaluated.
"""

from dataclasses import replace
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ddpm_codec.bound import Work, evaluate, evaluate_bound, step_kl_nats
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.data import load_batch


def bounds(source, pixels, steps):
    """The K-step bound under each variance, from one set of network calls.

    x_0_hat does not depend on the variance: only the terms are computed again.
    """
    first = evaluate_bound(
        source.model("calibrated"), pixels, torch.Generator().manual_seed(0), steps=steps
    )
    work, mse = first.terms.work, first.terms.mse
    is_kl, images = work.s > 0, len(pixels)
    result = {"calibrated": first}
    for variance in ("beta_tilde", "beta"):
        model = source.model(variance)
        kl = step_kl_nats(model, mse[is_kl] * first.dims, first.dims, work.t[is_kl], work.s[is_kl])
        last = Work(np.arange(images), np.ones(images, int), np.zeros(images, int), np.ones(images))
        decoder = evaluate(model, pixels, last, torch.Generator().manual_seed(1))
        result[variance] = replace(
            first,
            model=model,
            rate_nats=first.prior_nats + np.bincount(work.image[is_kl], kl, images),
            decoder_nats=decoder.nats,
        )
    return result


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, default=64, show_default=True)
@click.option("--steps", default="10,25,50,100,1000", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("chain_length"))
def main(ckpt, data, limit, steps, out):
    out.mkdir(parents=True, exist_ok=True)
    source, pixels = (load(ckpt) if ckpt else load_bundled()), load_batch(data, limit)
    rows = []
    for k in map(int, steps.split(",")):
        for variance, bound in bounds(source, pixels, k).items():
            report = bound.as_json()
            keys = ("total_bpd", "total_bpd_sem", "rate_bpd", "decoder_bpd")
            rows.append({"steps": k, "variance": variance} | {key: report[key] for key in keys})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(out / "chain_length.csv", index=False)
    print(table.pivot(index="steps", columns="variance", values="total_bpd").to_string())
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for variance, part in table.groupby("variance", sort=False):
        axes.errorbar(part["steps"], part["total_bpd"], part["total_bpd_sem"], label=variance,
                      marker="o", ms=4)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="steps of the chain", ylabel="bits/dim")
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="reverse variance")
    figure.savefig(out / "chain_length.png", dpi=130)


if __name__ == "__main__":
    main()
