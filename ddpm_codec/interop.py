"""Other projects' checkpoints: the same network under other names.

diffusers folders (`UNet2DModel`, safetensors, with its scheduler's configuration) and state dicts
named as in pesser/pytorch_diffusion, both the architecture of Ho et al. 2020, Appendix B, and
OpenAI's variants of it. What differs is refused by name. Timesteps count from 0 there:
`time="index"`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddpm_codec.checkpoint import MODEL_PRESETS, Checkpoint, ModelConfig
from ddpm_codec.errors import CheckpointError, ConfigError
from ddpm_codec.files import make_folder, write_tensors, write_text
from ddpm_codec.interop_names import module_names, rename
from ddpm_codec.interop_openai import infer_config, is_openai, openai_schedule, split_qkv
from ddpm_codec.schedule import Kind, Parameterization, ScheduleConfig
from ddpm_codec.unet_config import UNetConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
_PREDICTIONS: dict[str, Parameterization] = {
    "epsilon": "eps",
    "sample": "x_0",
    "v_prediction": "v",
}
_SCHEDULES: dict[str, Kind] = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable configuration ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a configuration was expected")
    return value


def unet_config(raw: Mapping[str, Any]) -> UNetConfig:
    """Ours from `UNet2DModel`'s. CheckpointError for an architecture that is another one."""
    widths = tuple(raw.get("block_out_channels", ()))
    downs, ups = raw.get("down_block_types", ()), raw.get("up_block_types", ())
    attention = tuple(i for i, kind in enumerate(downs) if kind == "AttnDownBlock2D")
    needed = {
        "down_block_types": [
            "AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(widths))
        ],
        "up_block_types": [
            "AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(len(widths)))
        ],
        "act_fn": "silu",
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "time_embedding_type": "positional",
        "mid_block_scale_factor": 1,
        "attention_head_dim": None,
        "out_channels": raw.get("in_channels"),
        "center_input_sample": False,
        "add_attention": bool(attention),
        "class_embed_type": None,
        "attn_norm_num_groups": None,
    }
    assumed = {"add_attention": True, "class_embed_type": None, "attn_norm_num_groups": None}
    found = assumed | dict(raw) | {"down_block_types": list(downs), "up_block_types": list(ups)}
    for name, value in needed.items():
        if found.get(name) != value:
            raise CheckpointError(f"a UNet2DModel with {name}={found.get(name)!r}: only {value!r}")
    if not widths or any(type(w) is not int or w < 1 or w % widths[0] for w in widths):
        raise CheckpointError(f"a UNet2DModel with block_out_channels={list(widths)}")
    config = UNetConfig(
        image_channels=int(raw["in_channels"]),
        channels=widths[0],
        multipliers=tuple(w // widths[0] for w in widths),
        blocks=int(raw.get("layers_per_block", 2)),
        attention=attention,
        dropout=float(raw.get("dropout", 0.0)),
    )
    try:
        config.check()
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return config


def schedule_config(raw: Mapping[str, Any]) -> tuple[ScheduleConfig, Parameterization]:
    """The schedule and what the network predicts, from a `DDPMScheduler`'s configuration."""
    kind, prediction = raw.get("beta_schedule"), raw.get("prediction_type", "epsilon")
    if kind not in _SCHEDULES or prediction not in _PREDICTIONS or raw.get("trained_betas"):
        raise CheckpointError(f"a scheduler with betas {kind!r} and prediction {prediction!r}")
    if raw.get("rescale_betas_zero_snr"):
        raise CheckpointError("a scheduler with rescale_betas_zero_snr: only without")
    config = ScheduleConfig(
        _SCHEDULES[kind],
        int(raw["num_train_timesteps"]),
        float(raw["beta_start"]),
        float(raw["beta_end"]),
    )
    config.check()
    return config, _PREDICTIONS[prediction]


def load_diffusers(folder: Path) -> Checkpoint:
    """A `DDPMPipeline` folder: config.json and diffusion_pytorch_model.* in unet/ and
    scheduler_config.json in scheduler/, or all of them in `folder` itself, as older ones do."""
    network, scheduler = (
        folder / name if (folder / name).is_dir() else folder for name in ("unet", "scheduler")
    )
    try:
        unet = unet_config(_read_json(network / "config.json"))
        schedule, prediction = schedule_config(_read_json(scheduler / "scheduler_config.json"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{folder}: its configuration is damaged ({error!r})") from error
    config = ModelConfig(unet, schedule, prediction, time="index")
    pickled = (network / WEIGHTS).with_suffix(".bin")
    tensors = _read_tensors(pickled if pickled.exists() and not (network / WEIGHTS).exists()
                            else network / WEIGHTS)  # fmt: skip
    weights = rename(config, _modern_attention(tensors), "diffusers")
    return Checkpoint(config, weights, notes={"imported": {"from": "diffusers"}})


def _modern_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention's older names (query, key, value, proj_attn) as those of today."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "attentions" in parts[:-2] and parts[-2] in old:
            parts[-2] = old[parts[-2]]
        renamed[".".join(parts)] = tensor
    return renamed


def load_state_dict(
    path: Path, heads: int = 4, schedule: Kind = "linear", T: int = 1000
) -> Checkpoint:
    """A state dict (.safetensors, or a PyTorch file of which tensors alone are read), named as in
    openai/improved-diffusion and guided-diffusion, or pesser/pytorch_diffusion.

    The latter is of the `paper` preset. `heads`, `schedule` and `T` are OpenAI's, whose files don't
    say them; both of its networks are taken to predict eps, and a second output to be the
    learned range of the variance. CheckpointError for anything else.
    """
    tensors = _read_tensors(path)
    if not is_openai(tensors):
        config = MODEL_PRESETS["paper"]
        weights = rename(config, tensors, "pesser")
        return Checkpoint(config, weights, notes={"imported": {"from": "pesser/pytorch_diffusion"}})
    unet = infer_config(tensors, heads)
    config = ModelConfig(unet, openai_schedule(schedule, T), "eps", "rescaled", "range")
    weights = rename(config, split_qkv(tensors, heads), "openai")
    return Checkpoint(config, weights, notes={"imported": {"from": "openai"}})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler raises whatever it meets
        reason = getattr(error, "strerror", None) or type(error).__name__  # torch's text advises
        raise CheckpointError(
            f"{path}: no state dict of tensors ({reason})"
        ) from error  # to run it
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise CheckpointError(f"{path}: a state dict of tensors was expected")
    return tensors


def save_diffusers(source: Checkpoint, folder: Path) -> None:
    """Write a `DDPMPipeline` folder. ConfigError for a network that diffusers does not have."""
    unet = source.config.unet
    kept = ("image_channels", "channels", "multipliers", "blocks", "attention", "dropout")
    if unet != UNetConfig(**{name: getattr(unet, name) for name in kept}):
        raise ConfigError("only networks of the paper's architecture can go to diffusers")
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    schedules = {ours: theirs for theirs, ours in _SCHEDULES.items()}
    schedule = source.config.schedule
    kind, prediction = schedules.get(schedule.kind), predictions.get(source.config.parameterization)
    if kind is None or prediction is None or source.config.time != "index" or not unet.attention:
        raise ConfigError(
            "diffusers takes linear, quadratic and cosine schedules, predictions of eps, x_0 and "
            'v, attention in the middle, and time="index"'
        )
    for name in ("unet", "scheduler"):
        make_folder(folder / name)
    weights: dict[str, Tensor] = {}
    for ours, theirs in module_names(unet, "diffusers"):
        for end in ("weight", "bias"):
            if f"{ours}.{end}" in source.weights:
                tensor = source.weights[f"{ours}.{end}"]
                is_linear = ".attentions." in theirs and tensor.ndim == 4
                weights[f"{theirs}.{end}"] = tensor[:, :, 0, 0] if is_linear else tensor
    write_tensors(folder / "unet" / WEIGHTS, weights)
    write_text(folder / "unet" / "config.json", json.dumps(_diffusers_unet(unet), indent=1))
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.T,
        "beta_start": schedule.beta_1,
        "beta_end": schedule.beta_T,
        "beta_schedule": kind,
        "prediction_type": prediction,
        "variance_type": "fixed_large",
        "clip_sample": True,
    }
    write_text(folder / "scheduler" / "scheduler_config.json", json.dumps(scheduler, indent=1))
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_text(folder / "model_index.json", json.dumps(index, indent=1))


def _diffusers_unet(unet: UNetConfig) -> dict[str, Any]:
    levels = range(len(unet.multipliers))
    attention = [i in unet.attention for i in levels]
    return {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [unet.channels * m for m in unet.multipliers],
        "center_input_sample": False,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "downsample_padding": 0,
        "dropout": unet.dropout,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": unet.image_channels,
        "layers_per_block": unet.blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "out_channels": unet.image_channels,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
    }
