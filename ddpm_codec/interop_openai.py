"""State dicts of openai/improved-diffusion and guided-diffusion: what network they are of.

They hold tensors alone. Widths, depths, attention and heads' kinds are read from names and shapes;
the number of attention heads and the schedule leave no trace and must be said.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ddpm_codec.errors import CheckpointError, ConfigError
from ddpm_codec.schedule import Kind, ScheduleConfig
from ddpm_codec.unet_config import UNetConfig

_MARK = "input_blocks.0.0.weight"
_REFERENCE_T = 1000


def is_openai(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of OpenAI's `UNetModel`."""
    return _MARK in tensors


def openai_schedule(kind: Kind, T: int) -> ScheduleConfig:
    """Theirs: linear from 1e-4 to 0.02 at T = 1000, in proportion at other lengths; or cosine."""
    if kind == "linear":
        scale = _REFERENCE_T / T
        config = ScheduleConfig(kind, T, scale * 1e-4, scale * 0.02)
    else:
        config = ScheduleConfig(kind, T)
    config.check()
    return config


def infer_config(tensors: Mapping[str, Tensor], heads: int) -> UNetConfig:
    """The `UNetConfig` of a state dict. CheckpointError for one of another architecture."""
    try:
        return _infer(tensors, heads)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, ConfigError) as error:
        raise CheckpointError(f"a network that this version doesn't know ({error})") from error


def _infer(tensors: Mapping[str, Tensor], heads: int) -> UNetConfig:
    channels, image_channels = tensors[_MARK].shape[:2]
    count = 1 + max(
        int(m[1]) for m in map(re.compile(r"input_blocks\.(\d+)\.").match, tensors) if m
    )
    widths: list[list[int]] = [[]]
    attention = set()
    for at in range(1, count):
        block = f"input_blocks.{at}"
        if f"{block}.0.op.weight" in tensors:
            widths.append([])
            continue
        widths[-1].append(tensors[f"{block}.0.in_layers.2.weight"].shape[0])
        if f"{block}.1.qkv.weight" in tensors:
            attention.add(len(widths) - 1)
    if any(len(level) != len(widths[0]) or len(set(level)) != 1 for level in widths):
        raise ValueError(f"levels of widths {widths}")
    if any(level[0] % channels for level in widths):
        raise ValueError(f"widths {widths} behind a stem of {channels}")
    outputs = tensors["out.2.weight"].shape[0]
    if outputs not in (image_channels, 2 * image_channels):
        raise ValueError(f"{outputs} outputs for {image_channels} channels")
    embedded, width = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0], widths[0][0]
    config = UNetConfig(
        image_channels=image_channels,
        channels=channels,
        multipliers=tuple(level[0] // channels for level in widths),
        blocks=len(widths[0]),
        attention=tuple(sorted(attention)),
        dropout=0.0,
        log_variance=outputs == 2 * image_channels,
        heads=heads,
        scale_shift=embedded == 2 * width,
        dialect="openai",
    )
    config.check()
    return config


def split_qkv(tensors: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Each `qkv` as `q`, `k` and `v`: theirs are stacked head by head, (heads, 3, width), ours
    kind by kind. CheckpointError where `heads` doesn't divide them."""
    split = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if not stem.endswith(".qkv"):
            split[name] = tensor
            continue
        if not tensor.ndim or tensor.shape[0] % (3 * heads):
            raise CheckpointError(f"{name} is {tuple(tensor.shape)}: not of {heads} heads")
        by_head = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
        for number, letter in enumerate("qkv"):
            part = by_head[:, number].reshape(-1, *tensor.shape[1:])
            split[f"{stem.removesuffix('qkv')}{letter}.{kind}"] = part
    return split
