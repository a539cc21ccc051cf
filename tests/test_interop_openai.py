"""OpenAI's state dicts: an independent forward pass from their names is the oracle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ddpm_codec import checkpoint
from ddpm_codec.checkpoint import build_network
from ddpm_codec.cli import main
from ddpm_codec.errors import CheckpointError
from ddpm_codec.interop import load_state_dict
from ddpm_codec.interop_openai import openai_schedule

from .oracles.openai_unet import Forward, random_state

SHAPES = {
    "as its CIFAR-10 networks": (
        {"channels": 32, "multipliers": (1, 2, 2), "blocks": 3, "attention": (1, 2)},
        {"scale_shift": True, "outputs": 6},
        4,
    ),
    "one head, added, eps alone": (
        {"channels": 32, "multipliers": (1, 1), "blocks": 1, "attention": (0,)},
        {"scale_shift": False, "outputs": 3},
        1,
    ),
    "grey": (
        {"channels": 64, "multipliers": (1, 2), "blocks": 2, "attention": (1,)},
        {"scale_shift": True, "outputs": 2, "image_channels": 1},
        2,
    ),
}


def written(path: Path, name: str) -> tuple[dict, int]:
    shape, rest, heads = SHAPES[name]
    state = random_state(**shape, **rest)
    torch.save(state, path)
    return state, heads


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("T", [1000, 4000])
def test_forward_pass_is_that_of_the_names(tmp_path, name, T):
    state, heads = written(tmp_path / "model.pt", name)
    source = load_state_dict(tmp_path / "model.pt", heads, "cosine", T)
    network = build_network(source.config).eval()
    network.load_state_dict(source.weights)
    shape, rest, _ = SHAPES[name]
    c = rest.get("image_channels", 3)
    x = torch.randn(2, c, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([1, T - 7])
    with torch.no_grad():
        expected = Forward(state, shape["channels"], heads)(x, (t - 1) * 1000 / T)
        prediction, second = network(x, t)
    ours = prediction if second is None else torch.cat([prediction, second], dim=1)
    assert float((ours - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


def test_schedules_are_in_proportion_to_their_length():
    """Linear: the betas of T = 1000 times 1000 / T at both ends."""
    short, long = openai_schedule("linear", 1000), openai_schedule("linear", 4000)
    np.testing.assert_allclose(long.betas()[[0, -1]], short.betas()[[0, -1]] / 4)


def test_commands(tmp_path, monkeypatch):
    """Imported, calibrated and measured with the variance that it learned."""
    monkeypatch.chdir(tmp_path)
    written(Path("model.pt"), "as its CIFAR-10 networks")
    run = CliRunner()
    options = ["--heads", "4", "--schedule", "cosine", "--diffusion-steps", "50"]
    result = run.invoke(main, ["import", "model.pt", "-o", "m.safetensors", *options])
    assert result.exit_code == 0, result.output
    assert checkpoint.load(Path("m.safetensors")).config.schedule.T == 50
    command = ["nll", "--ckpt", "m.safetensors", "--limit", "1", "--variance", "learned"]
    for more in (["--timesteps", "3"], ["--steps", "4"], ["--compat", "openai"]):
        result = run.invoke(main, [*command, *more])
        assert result.exit_code == 0, result.output


def test_what_it_is_not_is_said(tmp_path):
    state, heads = written(tmp_path / "model.pt", "grey")
    with pytest.raises(CheckpointError, match="heads"):
        load_state_dict(tmp_path / "model.pt", heads=5)
    for change, reason in (
        ({"label_emb.weight": torch.zeros(10, 4)}, "label_emb"),
        ({"out.2.weight": torch.zeros(5, 64, 3, 3)}, "5 outputs"),
        ({"time_embed.0.bias": None}, "time_embed.0.bias"),
        ({"input_blocks.0.0.weight": torch.zeros(0, 1, 3, 3)}, "doesn't know"),
        ({"middle_block.1.qkv.weight": torch.zeros(())}, "heads"),
    ):
        other = {k: v for k, v in (state | change).items() if v is not None}
        torch.save(other, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=reason):
            load_state_dict(tmp_path / "other.pt", heads)
