"""The same network under other projects' names for its tensors."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm_codec.checkpoint import ModelConfig, build_network
from ddpm_codec.errors import CheckpointError
from ddpm_codec.unet_config import UNetConfig

Naming = Literal["diffusers", "pesser", "openai"]

_BLOCK = {
    "diffusers": ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
    "pesser": ("norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut"),
    "openai": (
        "in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3",
        "skip_connection"
    ),
}  # fmt: skip
_ATTENTION = {
    "diffusers": ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    "pesser": ("norm", "q", "k", "v", "proj_out"),
    "openai": ("norm", "q", "k", "v", "proj_out"),
}
_ENDS = {
    "diffusers": (
        "time_embedding.linear_1", "time_embedding.linear_2", "conv_in", "conv_norm_out", "conv_out"
    ),
    "pesser": ("temb.dense.0", "temb.dense.1", "conv_in", "norm_out", "conv_out"),
    "openai": ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"),
}  # fmt: skip
_OURS_BLOCK = ("norm1", "conv1", "time", "norm2", "conv2", "shortcut")
_OURS_ATTENTION = ("norm", "q", "k", "v", "out")
_OURS_ENDS = ("time1", "time2", "stem", "norm", "head")


class _Part(NamedTuple):
    """A module of our `UNet`: its path, what it is, and where it stands."""

    path: str
    kind: Literal["stage", "down", "up"]
    side: Literal["down", "middle", "up"]
    level: int
    number: int
    at: int


def _parts(config: UNetConfig) -> Iterator[_Part]:
    levels, at = len(config.multipliers), 0
    for level in range(levels):
        for number in range(config.blocks):
            yield _Part(f"down.{at}", "stage", "down", level, number, at)
            at += 1
        if level < levels - 1:
            yield _Part(f"down.{at}", "down", "down", level, 0, at)
            at += 1
    for number in range(2):
        yield _Part(f"middle.{number}", "stage", "middle", 0, number, number)
    at = 0
    for level in reversed(range(levels)):
        for number in range(config.blocks + 1):
            yield _Part(f"up.{at}", "stage", "up", level, number, at)
            at += 1
        if level > 0:
            yield _Part(f"up.{at}", "up", "up", level, 0, at)
            at += 1


def _openai_prefixes(part: _Part, config: UNetConfig) -> tuple[str, str]:
    """Blocks are counted through; upsampling is the last layer of the block before it."""
    if part.side == "middle":
        return f"middle_block.{2 * part.number}", "middle_block.1"
    if part.side == "down":
        block = f"input_blocks.{part.at + 1}"
        return f"{block}.0.op" if part.kind == "down" else f"{block}.0", f"{block}.1"
    above = len(config.multipliers) - 1 - part.level  # levels that are done, an upsampling each
    block = f"output_blocks.{part.at - above - (part.kind == 'up')}"
    if part.kind == "up":
        return f"{block}.{2 if part.level in config.attention else 1}.conv", ""
    return f"{block}.0", f"{block}.1"


def _prefixes(part: _Part, naming: Naming, config: UNetConfig) -> tuple[str, str]:
    """(residual block or resampling convolution, attention) under the other naming."""
    if naming == "openai":
        return _openai_prefixes(part, config)
    levels = len(config.multipliers)
    if naming == "diffusers":
        level = levels - 1 - part.level if part.side == "up" else part.level
        block = "mid_block" if part.side == "middle" else f"{part.side}_blocks.{level}"
        if part.kind != "stage":
            return f"{block}.{part.kind}samplers.0.conv", ""
        return f"{block}.resnets.{part.number}", f"{block}.attentions.{part.number}"
    if part.side == "middle":
        return f"mid.block_{part.number + 1}", f"mid.attn_{part.number + 1}"
    block = f"{part.side}.{part.level}"
    if part.kind != "stage":
        return f"{block}.{part.kind}sample.conv", ""
    return f"{block}.block.{part.number}", f"{block}.attn.{part.number}"


def module_names(config: UNetConfig, naming: Naming) -> Iterator[tuple[str, str]]:
    """(our module, theirs); modules that a configuration does not have are among them."""
    yield from zip(_OURS_ENDS, _ENDS[naming], strict=True)
    for part in _parts(config):
        block, attention = _prefixes(part, naming, config)
        if part.kind != "stage":
            yield part.path, block
            continue
        for ours, theirs in zip(_OURS_BLOCK, _BLOCK[naming], strict=True):
            yield f"{part.path}.block.{ours}", f"{block}.{theirs}"
        for ours, theirs in zip(_OURS_ATTENTION, _ATTENTION[naming], strict=True):
            yield f"{part.path}.attention.{ours}", f"{attention}.{theirs}"


def rename(config: ModelConfig, tensors: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """The weights of our network from a state dict under another naming.

    Linear maps over channels become 1x1 convolutions. CheckpointError where a tensor is missing,
    left over, or of another shape.
    """
    with torch.device("meta"):
        expected = build_network(config).state_dict()
    weights, left = {}, dict(tensors)
    for ours, theirs in module_names(config.unet, naming):
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" not in expected:
                continue
            tensor = left.pop(f"{theirs}.{kind}", None)
            shape = expected[f"{ours}.{kind}"].shape
            if tensor is None:
                raise CheckpointError(f"the {naming} weights have no {theirs}.{kind}")
            if tensor.ndim in (2, 3) and len(shape) == 4:
                tensor = tensor.reshape(*tensor.shape, *[1] * (4 - tensor.ndim))
            if tensor.shape != shape:
                raise CheckpointError(
                    f"{theirs}.{kind} is {tuple(tensor.shape)}, expected {tuple(shape)}"
                )
            weights[f"{ours}.{kind}"] = tensor.float().contiguous()
    if left:
        raise CheckpointError(
            f"{len(left)} tensors that this network does not have, {min(left)} among them"
        )
    return weights
