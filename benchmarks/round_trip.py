"""diffusers' network and ours with its weights: outputs and bits/dim, there and back.

    pip install '.[test]'
    python benchmarks/round_trip.py [--data D] [--limit N] [--timesteps K]

A UNet2DModel of google/ddpm-cifar10-32's configuration (and a smaller one) with random weights is
written by diffusers, imported, exported and read by diffusers again. Prints the largest difference
of outputs, relative to the largest output, and of an image's bits/dim, each on the same noise.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from ddpm_unet import ddpm_unet
from diffusers import DDPMScheduler, UNet2DModel

from ddpm_codec.bound import evaluate_bound
from ddpm_codec.data import load_batch
from ddpm_codec.interop import load_diffusers, save_diffusers
from ddpm_codec.unet import Prediction, parameter_count
from ddpm_codec.units import from_uint8, nats_to_bpd

WIDTHS = {"google/ddpm-cifar10-32's": (128, 256, 256, 256), "a smaller one": (32, 64, 64, 64)}


class Theirs:
    """diffusers' forward pass as a denoiser: its timesteps count from 0."""

    def __init__(self, unet):
        self.unet = unet.eval().requires_grad_(False)

    def __call__(self, x_t, t):
        return Prediction(self.unet(x_t.float(), t - 1).sample, None)


def written(folder, widths):
    """A DDPMPipeline folder with random weights, no layer of which is zero."""
    torch.manual_seed(0)
    unet = ddpm_unet(widths, norm_eps=1e-6)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    unet.save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return Theirs(unet)


def bits_of(model, pixels, timesteps):
    """(N,) bits/dim."""
    bound = evaluate_bound(model, pixels, torch.Generator().manual_seed(0), timesteps)
    return nats_to_bpd(bound.total_nats, bound.dims)


@click.command()
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, default=4, show_default=True)
@click.option("--timesteps", default=20, show_default=True)
def main(data, limit, timesteps):
    pixels = load_batch(data, limit)
    for name, widths in WIDTHS.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            theirs = written(folder / "in", widths)
            source = load_diffusers(folder / "in")
            save_diffusers(source, folder / "out")
            again = load_diffusers(folder / "out")
            back = Theirs(UNet2DModel.from_pretrained(folder / "out" / "unet"))
        model = source.model("beta_tilde")
        x_0, generator = from_uint8(pixels), torch.Generator().manual_seed(0)
        differences = {"imported": 0.0, "exported again": 0.0}
        for t in (1, 2, 10, 100, 500, 1000):
            t_ = torch.full((len(x_0),), t)
            x_t = model.q_sample(x_0, t_, torch.randn(x_0.shape, generator=generator))
            expected = theirs(x_t, t_).prediction
            for label, denoiser in zip(differences, (model.denoiser, back), strict=True):
                found = (denoiser(x_t, t_).prediction - expected).abs().max()
                differences[label] = max(differences[label], float(found / expected.abs().max()))
        bits = bits_of(model, pixels, timesteps)
        their_bits = bits_of(replace(model, denoiser=theirs), pixels, timesteps)
        print(
            f"{name}, {parameter_count(theirs.unet) / 1e6:.1f} M parameters: outputs differ by "
            f"{differences['imported']:.1e} of the largest (imported), "
            f"{differences['exported again']:.1e} (exported, in diffusers again); bits/dim "
            f"{their_bits.mean():.6f} (theirs), {bits.mean():.6f} (ours), an image's by at most "
            f"{np.abs(bits - their_bits).max():.1e}; imported again: "
            f"{'the same checkpoint' if again.hash == source.hash else 'another checkpoint'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
