"""Other projects' checkpoints: diffusers' own forward pass is the oracle."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from ddpm_codec import checkpoint
from ddpm_codec.bound import evaluate_bound
from ddpm_codec.checkpoint import MODEL_PRESETS, ModelConfig, build_network
from ddpm_codec.cli import main
from ddpm_codec.errors import CheckpointError, ConfigError
from ddpm_codec.interop import (
    WEIGHTS,
    _modern_attention,
    load_diffusers,
    load_state_dict,
    save_diffusers,
)
from ddpm_codec.interop_names import module_names
from ddpm_codec.schedule import ScheduleConfig
from ddpm_codec.unet_config import UNetConfig

from .conftest import TINY, random_checkpoint

CIFAR10 = {  # of google/ddpm-cifar10-32
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALLER = CIFAR10 | {"block_out_channels": [32, 64, 64, 64], "sample_size": 16}
GREY = CIFAR10 | {
    "block_out_channels": [32, 32],
    "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "sample_size": 8,
}
CONFIGS = {"google/ddpm-cifar10-32": CIFAR10, "smaller": SMALLER, "grey": GREY}


def folder_of(path, raw, **scheduler):
    """A DDPMPipeline folder with random weights, written by diffusers itself."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**raw)
    for parameter in unet.parameters():  # no zero-initialised layer may hide a wrong order
        torch.nn.init.normal_(parameter, std=0.05 if parameter.ndim > 1 else 0.5)
    unet.save_pretrained(path / "unet")
    diffusers.DDPMScheduler(**scheduler).save_pretrained(path / "scheduler")
    return unet.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_pass_is_that_of_diffusers(tmp_path, name):
    unet = folder_of(tmp_path, CONFIGS[name])
    source = load_diffusers(tmp_path)
    network = build_network(source.config)
    network.load_state_dict(source.weights)
    network.eval()
    raw = CONFIGS[name]
    side, channels = raw["sample_size"], raw["in_channels"]
    x = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    for t in (1, 2, 500, 1000):
        with torch.no_grad():
            theirs = unet(x, t - 1).sample
            ours = network(x, torch.full((2,), t)).prediction
        scale = float(theirs.abs().max())
        assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, scale)
    if name == "google/ddpm-cifar10-32":
        assert sum(p.numel() for p in network.parameters()) == 35_746_307


def test_older_layouts_are_read(tmp_path):
    """Everything in one folder, with safetensors or a PyTorch file: diffusers reads them, too."""
    folder_of(tmp_path / "new", SMALLER)
    expected = load_diffusers(tmp_path / "new")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in [
        *(tmp_path / "new" / "unet").iterdir(),
        *(tmp_path / "new" / "scheduler").iterdir(),
    ]:
        path.rename(flat / path.name)
    assert load_diffusers(flat).hash == expected.hash
    tensors = load_file(flat / WEIGHTS)
    torch.save(tensors, (flat / WEIGHTS).with_suffix(".bin"))
    (flat / WEIGHTS).unlink()
    assert load_diffusers(flat).hash == expected.hash


def test_export_is_read_by_diffusers_and_by_us(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    folder_of(tmp_path / "in", SMALLER, beta_schedule="squaredcos_cap_v2", num_train_timesteps=50)
    source = load_diffusers(tmp_path / "in")
    save_diffusers(source, tmp_path / "out")
    again = load_diffusers(tmp_path / "out")
    assert again.config == source.config
    assert all(torch.equal(again.weights[k], v) for k, v in source.weights.items())
    assert again.hash == source.hash
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    assert unet.config.block_out_channels == [32, 64, 64, 64]
    betas = diffusers.DDPMScheduler.from_pretrained(tmp_path / "out" / "scheduler").betas
    np.testing.assert_allclose(betas, source.model("beta").schedule.beta[1:], rtol=2e-5)


def test_models_of_the_paper_preset_are_exported(tmp_path):
    """A narrower one. They once counted t from 1, which no diffusers folder can say."""
    unet = replace(MODEL_PRESETS["paper"].unet, channels=32, multipliers=(1, 1), blocks=1)
    source = random_checkpoint(replace(MODEL_PRESETS["paper"], unet=unet))
    save_diffusers(source, tmp_path / "out")
    assert load_diffusers(tmp_path / "out").hash == source.hash


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_schedules_are_those_of_diffusers(tmp_path, kind):
    diffusers = pytest.importorskip("diffusers")
    options = {"beta_schedule": kind, "num_train_timesteps": 200}
    folder_of(tmp_path, GREY, **options)
    schedule = load_diffusers(tmp_path).model("beta").schedule
    betas = diffusers.DDPMScheduler(**options).betas
    np.testing.assert_allclose(schedule.beta[1:], betas, rtol=1e-4)


def test_bits_survive_the_round_trip(tmp_path):
    """The bound of an exported and imported model is the same to the last bit."""
    config = ModelConfig(
        UNetConfig(channels=32, multipliers=(1, 1), blocks=1, attention=(1,), dropout=0.0),
        ScheduleConfig(T=10, beta_T=0.3),
        time="index",
    )
    source = random_checkpoint(config)
    save_diffusers(source, tmp_path / "out")
    again = load_diffusers(tmp_path / "out")
    pixels = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    bounds = [
        evaluate_bound(s.model("beta"), pixels.to(torch.uint8), torch.Generator().manual_seed(0))
        for s in (source, again)
    ]
    np.testing.assert_array_equal(bounds[0].total_nats, bounds[1].total_nats)


def test_state_dict_of_pesser(tmp_path, monkeypatch):
    """Our weights under that naming, as a PyTorch file, read back; names as in its model.py.

    Its times count from 0, ours from 1."""
    config = ModelConfig(
        UNetConfig(channels=32, multipliers=(1, 2), blocks=2, attention=(1,), dropout=0.0),
        time="index",
    )
    source = random_checkpoint(config)
    theirs = {
        f"{name}.{kind}": source.weights[f"{ours}.{kind}"]
        for ours, name in module_names(config.unet, "pesser")
        for kind in ("weight", "bias")
        if f"{ours}.{kind}" in source.weights
    }
    for name in ("temb.dense.0.weight", "down.0.downsample.conv.weight", "mid.attn_1.q.weight",
                 "mid.block_2.conv2.bias", "down.1.attn.1.proj_out.weight", "norm_out.weight",
                 "up.1.block.2.nin_shortcut.weight", "up.1.upsample.conv.bias",
                 "down.1.block.0.temb_proj.weight"):  # fmt: skip
        assert name in theirs
    torch.save(theirs, tmp_path / "model.ckpt")
    monkeypatch.setitem(MODEL_PRESETS, "paper", config)
    found = load_state_dict(tmp_path / "model.ckpt")
    assert found.config == config
    assert all(torch.equal(found.weights[k], v) for k, v in source.weights.items())


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_but_tensors_is_unpickled(tmp_path, capsys):
    torch.save({"conv_in.weight": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="state dict"):
        load_state_dict(tmp_path / "evil.ckpt")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"downsample_padding": 1}, "downsample_padding"),
        ({"attention_head_dim": 8}, "attention_head_dim"),
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos"),
        ({"block_out_channels": [32, 48, 64, 64]}, "block_out_channels"),
        ({"down_block_types": ["SkipDownBlock2D"] * 4}, "down_block_types"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups"),
        ({"block_out_channels": 32}, "damaged"),
        ({"down_block_types": None}, "damaged"),
        ({"layers_per_block": [2]}, "damaged"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path, change, reason):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(SMALLER | change))
    with pytest.raises(CheckpointError, match=reason):
        load_diffusers(tmp_path)


def test_a_configuration_without_end_is_refused(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not a readable configuration"):
        load_diffusers(tmp_path)


def test_a_tensor_named_attentions_is_no_attention():
    tensors = {"attentions": torch.zeros(1), "mid.attentions.0.query.weight": torch.ones(1)}
    assert set(_modern_attention(tensors)) == {"attentions", "mid.attentions.0.to_q.weight"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"beta_schedule": ["linear"]}, "damaged"),
        ({"beta_start": None}, "damaged"),
    ],
)
def test_another_scheduler_is_refused_by_name(tmp_path, change, reason):
    scheduler = {"num_train_timesteps": 10, "beta_start": 1e-4, "beta_end": 0.02,
                 "beta_schedule": "linear"}  # fmt: skip
    for name, raw in (("unet/config", SMALLER), ("scheduler/scheduler_config", scheduler | change)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=reason):
        load_diffusers(tmp_path)


def test_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "ddpm", SMALLER)
    run = CliRunner()
    result = run.invoke(main, ["import", "ddpm", "-o", "m.safetensors"])
    assert result.exit_code == 0, result.output
    command = ["nll", "--ckpt", "m.safetensors", "--limit", "1", "--timesteps", "3"]
    assert run.invoke(main, command).exit_code == 0
    assert run.invoke(main, ["export", "--ckpt", "m.safetensors", "-o", "again"]).exit_code == 0
    assert (
        load_diffusers(tmp_path / "again").hash == checkpoint.load(tmp_path / "m.safetensors").hash
    )
    checkpoint.save(random_checkpoint(replace(TINY, unet=replace(TINY.unet, image_channels=1))),
                    tmp_path / "grey.safetensors")  # fmt: skip
    for command in (
        ["import", "no", "-o", "x"],
        ["export", "-o", "x"],
        ["import", "again/unet", "-o", "x"],
        ["nll", "--ckpt", "grey.safetensors"],
    ):
        result = run.invoke(main, command)
        assert (result.exit_code, result.output.count("\n")) == (1, 1)


def test_what_diffusers_does_not_have_is_not_exported(tmp_path):
    with pytest.raises(ConfigError, match="architecture"):
        save_diffusers(random_checkpoint(TINY), tmp_path / "out")
