"""The bound of K-step chains under each reverse variance: a table and a plot.

    python experiments/chain_length.py [--ckpt C] [--data D] [--limit N] [--out DIR]

As in the literature on optimal variances (Bao et al. 2022, Table 1), with the chain even in log
SNR and every term evaluated.
"""

from pathlib import Path

import click
import matplotlib.pyplot as plt
import pandas as pd
import torch

from ddpm_codec.bound import evaluate_bound
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.data import load_batch


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
        for variance in ("beta", "beta_tilde", "calibrated"):
            bound = evaluate_bound(
                source.model(variance), pixels, torch.Generator().manual_seed(0), steps=k
            )
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
