"""What L_0 would be if the dependent decoder's weights were fitted to the picture that is coded.

    python experiments/own_picture.py --data PHOTOS [--ckpt C] [--limit N] [--out FILE]

For each photograph one exact draw of x_1, and L_0 in bits/dim under Eq. 13, under the calibrated
`conditional.py`, under the same with its tables fitted to the photograph, and under a mean that is
linear in the 5x5 neighbours' z (of those that come before), in u = (x_1 - x_0_hat) / sqrt(v) and
in d, the differences of x_0_hat over sqrt(v) (both of all): one set of weights for each part,
rounded to multiples of 1 / SCALE. `weights_bpd` is what these cost under Rice codes; the tables of
`own_3x3` are not paid for.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.conditional import CLASSES, PHASES, Part, PixelFit, classes_of, left_out, parts
from ddpm_codec.data import list_images, read_image
from ddpm_codec.diffusion import broadcast
from ddpm_codec.discretized import DiscretizedGaussian, without_rounding
from ddpm_codec.entropy import Rice
from ddpm_codec.memory import keep_freed_memory
from ddpm_codec.units import from_uint8, nats_to_bpd

REACH = 2
MOST = 8.0
"""u and d are cut off there."""
SCALE = 256
RIDGE = 32.0


def around(x, part, before=None):
    """The (h w,) neighbours in `x` (1,C,H,W) of a part's pixels, zeros beyond the edge; with
    `before`, only those of these parts."""
    channels, height, width = x.shape[1:]
    padded, (y, x_) = F.pad(x, (REACH,) * 4), PHASES[part.phase]
    for channel in range(channels):
        for dy in range(2 * REACH + 1):
            for dx in range(2 * REACH + 1):
                phase = PHASES.index(((y + dy - REACH) % 2, (x_ + dx - REACH) % 2))
                if before is None or Part(channel, phase) in before:
                    rows, columns = slice(y + dy, height + dy, 2), slice(x_ + dx, width + dx, 2)
                    yield padded[:, channel, rows, columns].flatten()


def features(part, z, u, x_0_hat, std):
    """(h w, K) of a part: z of what comes before, u and d of all neighbours."""
    before = parts(z.shape[1])[: parts(z.shape[1]).index(part)]
    here, scale = x_0_hat[part.at].flatten(), std[part.at].flatten()
    d = [((there - here) / scale).clamp(-MOST, MOST) for there in around(x_0_hat, part)]
    return torch.stack([*around(z, part, before), *around(u, part), *d], dim=1)


def rice_bits(weights):
    """Of integers, signs folded in, under the best Rice code for all of them."""
    folded = [2 * abs(w) - (w > 0) for w in weights.long().tolist()]
    return min(sum(Rice(k).length_bits(w) for w in folded) for k in range(8))


def own_nats(pixels, x_t, x_0_hat, variance, noise):
    """(L_0 in nats, bits of the weights) of one picture (1,C,H,W) with weights of its own."""
    std, z = variance.sqrt(), left_out(pixels, x_0_hat, variance)
    u, kinds = ((x_t - x_0_hat) / std).clamp(-MOST, MOST), classes_of(variance, noise)
    nats, bits = 0.0, 0
    for part in parts(pixels.shape[1]):
        rows, wanted = features(part, z, u, x_0_hat, std), z[part.at].flatten()
        gram = rows.T @ rows + RIDGE * torch.eye(rows.shape[1], dtype=rows.dtype)
        weights = (SCALE * torch.linalg.solve(gram, rows.T @ wanted)).round()
        bits += rice_bits(weights)
        shift, kind = rows @ (weights / SCALE), kinds[part.at].flatten()
        left = [((wanted - shift)[kind == k] ** 2).sum() for k in range(CLASSES)]
        count = torch.bincount(kind, minlength=CLASSES).clamp_min(1)
        spread = (torch.stack(left) / count)[kind].view_as(pixels[part.at])
        mean = x_0_hat[part.at] + std[part.at] * shift.view_as(pixels[part.at])
        gaussian = DiscretizedGaussian(mean, without_rounding(spread * variance[part.at]).sqrt())
        nats -= float(gaussian.log_prob_nats(pixels[part.at]))
    return nats, bits


def measure(model, pixels, generator):
    """A row of L_0 in bits/dim of one picture (1,C,H,W) uint8 from one draw of x_1."""
    x_0, t = from_uint8(pixels), torch.tensor([1])
    x_t = model.q_sample(x_0, t, torch.randn(x_0.shape, generator=generator))
    estimate, noise = model.estimate(x_t, t), broadcast(model.schedule.variance, t, x_0)
    variance, fit = model.pixel_variance(estimate, t).expand_as(x_0), PixelFit(pixels.shape[1])
    fit.add(pixels, estimate.x_0_hat, variance, noise)
    weights, spread = fit.tables()
    decoder = model.decoder(estimate, t)
    nats = {
        "independent": model.independent_decoder(estimate, t),
        "calibrated": decoder,
        "own_3x3": replace(decoder, weights=weights, spread=spread),
    }
    row = {name: -float(kind.log_prob_nats(pixels)) for name, kind in nats.items()}
    exact = (x_t.double(), estimate.x_0_hat.double(), variance.double())
    row["own_5x5"], bits = own_nats(pixels, *exact, noise.double())
    row = {name: float(nats_to_bpd(np.array(x), x_0.numel())) for name, x in row.items()}
    return row | {"weights_bpd": bits / x_0.numel()}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--limit", default=4, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("own_picture.csv"))
def main(data, ckpt, limit, out):
    keep_freed_memory()
    model = (load(ckpt) if ckpt else load_bundled()).model()
    generator, rows = torch.Generator().manual_seed(0), []
    for path in list_images(data)[:limit]:
        pixels = torch.from_numpy(read_image(path).copy()).permute(2, 0, 1)[None]
        rows.append({"picture": path.stem} | measure(model, pixels.contiguous(), generator))
        pd.DataFrame(rows).to_csv(out, index=False)
        print("  ".join(f"{k} {v:.4f}" if k != "picture" else v for k, v in rows[-1].items()),
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
