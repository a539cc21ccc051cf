"""The bound of K-step chains under each reverse variance: a table and a plot.

    python experiments/chain_length.py [--ckpt C] [--data D] [--limit N] [--out DIR]

As in the literature on optimal variances (Bao et al. 2022, Table 1), with the chain even in log
SNR and every term evaluated.
"""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import click
import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from ddpm_codec.bound import prior_nats, standard_error, step_kl_nats
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.data import load_batch
from ddpm_codec.diffusion import VarianceRule
from ddpm_codec.units import from_uint8, nats_to_bpd


def bounds(source, pixels, steps):
    """(rate, decoder) of the K-step bound in nats, each (N,), under each variance, from one set of
    network calls: x_0_hat does not depend on the variance."""
    has_learned = source.config.variance_head == "range"
    names = [v for v in get_args(VarianceRule) if v != "learned" or has_learned]
    models = {variance: source.model(variance) for variance in names}
    model, generator = models["beta"], torch.Generator().manual_seed(0)
    models = {variance: replace(m, denoiser=model.denoiser) for variance, m in models.items()}
    x_0, grid = from_uint8(pixels), model.schedule.log_snr_grid(steps)
    rate = dict.fromkeys(names, prior_nats(model, x_0))
    decoder = {}
    for t, s in zip(grid, [*grid[1:], 0], strict=True):
        t_, s_ = torch.full((len(x_0),), int(t)), torch.full((len(x_0),), int(s))
        x_t = model.q_sample(x_0, t_, torch.randn(x_0.shape, generator=generator))
        estimate = model.estimate(x_t, t_)
        for variance, m in models.items():
            if s > 0:
                rate[variance] = rate[variance] + step_kl_nats(m, estimate, x_0, t_, s_).numpy()
            else:
                decoder[variance] = -m.decoder(estimate, t_).log_prob_nats(pixels).numpy()
    return {variance: (rate[variance], decoder[variance]) for variance in names}


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, default=64, show_default=True)
@click.option("--steps", default="8,10,25,50,100,1000", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("chain_length"))
def main(ckpt, data, limit, steps, out):
    out.mkdir(parents=True, exist_ok=True)
    source, pixels = (load(ckpt) if ckpt else load_bundled()), load_batch(data, limit)
    rows = []
    for k in map(int, steps.split(",")):
        for variance, (rate, decoder) in bounds(source, pixels, k).items():
            row = {"steps": k, "variance": variance}
            for name, nats in (("total", rate + decoder), ("rate", rate), ("decoder", decoder)):
                bpd = nats_to_bpd(nats, pixels[0].numel())
                row |= {f"{name}_bpd": float(bpd.mean()), f"{name}_bpd_sem": standard_error(bpd)}
            rows.append(row)
            print(row, flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(out / "chain_length.csv", index=False)
    print(table.pivot(index="steps", columns="variance", values="total_bpd").to_string())
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for variance, part in table.groupby("variance", sort=False):
        axes.errorbar(part["steps"], part["total_bpd"], part["total_bpd_sem"], label=variance,
                      marker="o", ms=4)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="steps of the chain", ylabel="bits/dim")
    for axis, ticks in ((axes.xaxis, sorted(set(table["steps"]))), (axes.yaxis, range(1, 20))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(title="reverse variance")
    figure.savefig(out / "chain_length.png", dpi=130)


if __name__ == "__main__":
    main()
