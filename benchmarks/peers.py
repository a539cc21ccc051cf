"""OpenAI's own bound beside ours, on the same weights, pictures and noise.

    python benchmarks/peers.py CHECKOUT [CHECKOUT] [--ckpt C] [--data D] [--limit N]

CHECKOUT: a copy of github.com/openai/improved-diffusion or guided-diffusion. Prints, for both fixed
variances, the largest difference of a term in bits/dim under its conventions, and what each
convention changes; then the same for a network of its own with random weights and a learned
variance, imported.
"""

import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import torch

from ddpm_codec.bound import prior_nats, step_kl_nats
from ddpm_codec.checkpoint import load, load_bundled
from ddpm_codec.data import load_batch
from ddpm_codec.interop import load_state_dict
from ddpm_codec.units import from_uint8, nats_to_bpd

TYPES = {"beta": "FIXED_LARGE", "beta_tilde": "FIXED_SMALL"}


def our_terms(model, pixels, x_t, t):
    """(N,) bits/dim of the term at t."""
    x_0, t_ = from_uint8(pixels), torch.full((len(pixels),), t)
    estimate = model.estimate(x_t, t_)
    if t == 1:
        nats = -model.decoder(estimate, t_).log_prob_nats(pixels)
    else:
        nats = step_kl_nats(model, estimate, x_0, t_, t_ - 1)
    return nats_to_bpd(nats.numpy(), x_0[0].numel())


def compare_learned(peer, unet, pixels, steps=100):
    """A random network of theirs, its forward pass and every term of its bound."""
    torch.manual_seed(0)
    size = {"image_size": 32} if unet.__name__.startswith("guided") else {}
    network = unet.UNetModel(
        **size, in_channels=3, model_channels=32, out_channels=6, num_res_blocks=3,
        attention_resolutions=(2, 4), channel_mult=(1, 2, 2, 2), num_heads=4,
        use_scale_shift_norm=True,
    ).eval()  # fmt: skip
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(network.state_dict(), Path(folder) / "model.pt")
        source = load_state_dict(Path(folder) / "model.pt", heads=4, schedule="cosine", T=steps)
    model = replace(source.model("learned"), convention="openai")
    theirs = peer.GaussianDiffusion(
        betas=peer.get_named_beta_schedule("cosine", steps),
        model_mean_type=peer.ModelMeanType.EPSILON,
        model_var_type=peer.ModelVarType.LEARNED_RANGE,
        loss_type=peer.LossType.MSE,
        rescale_timesteps=True,
    )
    x_0, generator = from_uint8(pixels), torch.Generator().manual_seed(0)
    outputs, terms, sums = 0.0, 0.0, np.zeros(2)
    for t in range(steps, 0, -1):
        index = torch.full((len(x_0),), t - 1)
        x_t = theirs.q_sample(x_0, index, torch.randn(x_0.shape, generator=generator))
        with torch.no_grad():
            expected = network(x_t, index.float() * 1000 / steps)
            ours = torch.cat(model.denoiser(x_t, index + 1), dim=1)
            term = theirs._vb_terms_bpd(network, x_0, x_t, index)["output"].numpy()
        own = our_terms(model, pixels, x_t, t)
        outputs = max(outputs, float((ours - expected).abs().max() / expected.abs().max()))
        terms = max(terms, float(np.abs(own - term).max()))
        sums += term.mean(), own.mean()
    print(
        f"learned (LEARNED_RANGE), cosine, {steps} terms: outputs differ by {outputs:.1e} of the "
        f"largest, a term by at most {terms:.2e} bits/dim; sums {sums[0]:.5f} (theirs), "
        f"{sums[1]:.5f} (ours, --compat openai)"
    )


def compare_fixed(peer, source, pixels, variance, kind):
    """Every term of a model of ours under one fixed variance, by their code and by ours."""
    x_0, T = from_uint8(pixels), source.config.schedule.T
    exact = source.model(variance)
    model, schedule = replace(exact, convention="openai"), exact.schedule
    theirs = peer.GaussianDiffusion(
        betas=schedule.beta[1:],
        model_mean_type=peer.ModelMeanType.EPSILON,
        model_var_type=peer.ModelVarType[kind],
        loss_type=peer.LossType.MSE,
    )

    def eps(x_t, index):
        t = index + 1
        a = torch.from_numpy(schedule.alpha_bar)[t].view(-1, 1, 1, 1)
        x_0_hat = exact.estimate(x_t, t).x_0_hat
        return ((x_t - a.sqrt() * x_0_hat) / (1 - a).sqrt()).float()

    generator, sums, worst = torch.Generator().manual_seed(0), np.zeros((3, len(x_0))), (0.0, 0)
    for t in range(T, 0, -1):
        index = torch.full((len(x_0),), t - 1)
        noise = torch.randn(x_0.shape, generator=generator)
        x_t = theirs.q_sample(x_0, index, noise=noise)
        term = theirs._vb_terms_bpd(eps, x_0, x_t, index)["output"].numpy()
        ours = our_terms(model, pixels, x_t, t)
        worst = max(worst, (float(np.abs(term - ours).max()), t))
        sums += np.stack([term, ours, our_terms(exact, pixels, x_t, t)])
    own_prior = nats_to_bpd(prior_nats(exact, x_0), x_0[0].numel())
    prior = np.abs(theirs._prior_bpd(x_0).numpy() - own_prior)
    total, own, right = sums.mean(axis=1)
    print(
        f"{variance} ({kind}), {T} terms of {len(x_0)} pictures: largest difference of a term "
        f"{worst[0]:.2e} bits/dim (t = {worst[1]}), of the prior {prior.max():.1e}; sums "
        f"{total:.5f} (theirs), {own:.5f} (ours, --compat openai), {right:.5f} (exact)",
        flush=True,
    )


@click.command()
@click.argument("checkouts", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--ckpt", type=click.Path(path_type=Path))
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, default=8, show_default=True)
def main(checkouts, ckpt, data, limit):
    source, pixels = (load(ckpt) if ckpt else load_bundled()), load_batch(data, limit)
    for checkout in checkouts:
        package = next(
            p for p in ("improved_diffusion", "guided_diffusion") if (checkout / p).is_dir()
        )
        sys.path.insert(0, str(checkout))
        peer = import_module(f"{package}.gaussian_diffusion")
        print(package)
        for variance, kind in TYPES.items():
            compare_fixed(peer, source, pixels, variance, kind)
        compare_learned(peer, import_module(f"{package}.unet"), pixels)


if __name__ == "__main__":
    main()
