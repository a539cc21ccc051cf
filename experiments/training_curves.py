"""Validation bits/dim against minutes of training, several runs in one plot.

    python experiments/training_curves.py LOG.csv [LOG.csv ...] [--out FIGURE]

LOG.csv is what `ddpm-codec train --val` writes beside its checkpoint.
"""

from pathlib import Path

import click
import matplotlib.pyplot as plt
import pandas as pd


@click.command()
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("training_curves.png"))
def main(logs, out):
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for path in logs:
        rows = pd.read_csv(path).dropna(subset="validation_bpd")
        axes.plot(rows["seconds"] / 60, rows["validation_bpd"], marker="o", ms=4, label=path.stem)
        last = rows.iloc[-1]
        print(
            f"{path.stem}: {last['seconds'] / 60:.1f} min, {int(last['step'])} steps, "
            f"{last['images_per_second']:.0f} images/s, {last['validation_bpd']:.4f} bits/dim"
        )
    axes.set(xlabel="minutes of training", ylabel="validation bits/dim")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main()
