"""Table 4 of the paper beside the same ten rows of a model on photo patches.

python experiments/table_4.py [--ckpt C] [--data D] [--limit N] [--out DIR]
"""

from pathlib import Path

import click
import torch

from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.data import load_batch
from ddpm_codec.plots import plot_rate_distortion
from ddpm_codec.rate_distortion import TABLE_4, measure_curve, table_4


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, default=64, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("table_4"))
def main(ckpt, data, limit, out):
    out.mkdir(parents=True, exist_ok=True)
    model, pixels = (load(ckpt) if ckpt else load_bundled()).model(), load_batch(data, limit)
    _, curve = measure_curve(model, pixels, torch.Generator().manual_seed(0))
    paper = TABLE_4.rename(columns={"rate_bpd": "paper_rate_bpd", "rmse_255": "paper_rmse_255"})
    both = table_4(curve).merge(paper, on="reverse_step")
    both.to_csv(out / "table_4.csv", index=False)
    print(both.to_string(index=False, float_format="%.5f"))
    plot_rate_distortion(curve, out / "figure_5.png", f"{data}, {len(pixels)} images")


if __name__ == "__main__":
    main()
