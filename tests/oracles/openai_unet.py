"""OpenAI's U-Net from its state dict's names alone: a functional forward pass.

Written from the published description and names of improved-diffusion's `UNetModel`, with no code
of ours: blocks are walked as they are numbered, layers told by their tensors.
"""

import math

import torch
from torch.nn import functional as F


def random_state(
    channels, multipliers, blocks, attention, *, scale_shift, outputs, image_channels=3, seed=0
):
    """A state dict of random tensors; `attention`: the levels that have it."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def layer(name, *shape, gain=0.05):
        state[f"{name}.weight"] = gain * torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    def norm(name, width):
        layer(name, width, gain=0.5)

    def res(name, c_in, c_out):
        norm(f"{name}.in_layers.0", c_in)
        layer(f"{name}.in_layers.2", c_out, c_in, 3, 3)
        layer(f"{name}.emb_layers.1", c_out * (2 if scale_shift else 1), 4 * channels)
        norm(f"{name}.out_layers.0", c_out)
        layer(f"{name}.out_layers.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            layer(f"{name}.skip_connection", c_out, c_in, 1, 1)

    def attend(name, width):
        norm(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1, gain=0.2)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", 4 * channels, channels)
    layer("time_embed.2", 4 * channels, 4 * channels)
    layer("input_blocks.0.0", channels, image_channels, 3, 3)
    at, width, skips = 1, channels, [channels]
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            res(f"input_blocks.{at}.0", width, multiplier * channels)
            width = multiplier * channels
            if level in attention:
                attend(f"input_blocks.{at}.1", width)
            skips.append(width)
            at += 1
        if level < len(multipliers) - 1:
            layer(f"input_blocks.{at}.0.op", width, width, 3, 3)
            skips.append(width)
            at += 1
    res("middle_block.0", width, width)
    attend("middle_block.1", width)
    res("middle_block.2", width, width)
    at = 0
    for level in reversed(range(len(multipliers))):
        for number in range(blocks + 1):
            res(f"output_blocks.{at}.0", width + skips.pop(), multipliers[level] * channels)
            width = multipliers[level] * channels
            if level in attention:
                attend(f"output_blocks.{at}.1", width)
            if level > 0 and number == blocks:
                layer(
                    f"output_blocks.{at}.{2 if level in attention else 1}.conv", width, width, 3, 3
                )
            at += 1
    norm("out.0", width)
    layer("out.2", outputs, width, 3, 3)
    return state


class Forward:
    """The network of a state dict; call with x (N,C,H,W) and the embedded times (N,)."""

    def __init__(self, state, channels, heads):
        self.state, self.channels, self.heads = state, channels, heads

    def _get(self, name):
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def _norm(self, name, h):
        return F.group_norm(h, 32, *self._get(name), eps=1e-5)

    def _res(self, name, h, embedding):
        inner = F.conv2d(F.silu(self._norm(f"{name}.in_layers.0", h)),
                         *self._get(f"{name}.in_layers.2"), padding=1)  # fmt: skip
        embedded = F.linear(F.silu(embedding), *self._get(f"{name}.emb_layers.1"))[..., None, None]
        if embedded.shape[1] == inner.shape[1]:
            inner = self._norm(f"{name}.out_layers.0", inner + embedded)
        else:
            scale, shift = embedded.split(inner.shape[1], dim=1)
            inner = self._norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        inner = F.conv2d(F.silu(inner), *self._get(f"{name}.out_layers.3"), padding=1)
        if f"{name}.skip_connection.weight" in self.state:
            h = F.conv2d(h, *self._get(f"{name}.skip_connection"))
        return h + inner

    def _attend(self, name, h):
        n, c, height, width = h.shape
        weight, bias = self._get(f"{name}.qkv")
        qkv = torch.einsum("oc,ncl->nol", weight[:, :, 0],
                           self._norm(f"{name}.norm", h).flatten(2)) + bias[:, None]  # fmt: skip
        out = []
        for one in qkv.chunk(self.heads, dim=1):
            q, k, v = one.chunk(3, dim=1)
            scores = torch.einsum("ncl,ncm->nlm", q, k) / math.sqrt(q.shape[1])
            out.append(torch.einsum("nlm,ncm->ncl", scores.softmax(dim=-1), v))
        weight, bias = self._get(f"{name}.proj_out")
        mixed = torch.einsum("oc,ncl->nol", weight[:, :, 0], torch.cat(out, dim=1))
        return h + (mixed + bias[:, None]).reshape(n, c, height, width)

    def _block(self, name, h, embedding):
        layer = 0
        while any(key.startswith(f"{name}.{layer}.") for key in self.state):
            at = f"{name}.{layer}"
            if f"{at}.qkv.weight" in self.state:
                h = self._attend(at, h)
            elif f"{at}.op.weight" in self.state:
                h = F.conv2d(h, *self._get(f"{at}.op"), stride=2, padding=1)
            elif f"{at}.conv.weight" in self.state:
                h = F.conv2d(h.repeat_interleave(2, 2).repeat_interleave(2, 3),
                             *self._get(f"{at}.conv"), padding=1)  # fmt: skip
            else:
                h = self._res(at, h, embedding)
            layer += 1
        return h

    def __call__(self, x, times):
        half = self.channels // 2
        angle = times[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        embedding = torch.cat([angle.cos(), angle.sin()], dim=1)
        embedding = F.silu(F.linear(embedding, *self._get("time_embed.0")))
        embedding = F.linear(embedding, *self._get("time_embed.2"))
        h = F.conv2d(x, *self._get("input_blocks.0.0"), padding=1)
        skips, at = [h], 1
        while any(key.startswith(f"input_blocks.{at}.") for key in self.state):
            h = self._block(f"input_blocks.{at}", h, embedding)
            skips.append(h)
            at += 1
        h = self._block("middle_block", h, embedding)
        for number in range(at):
            h = torch.cat([h, skips.pop()], dim=1)
            h = self._block(f"output_blocks.{number}", h, embedding)
        h = F.silu(self._norm("out.0", h))
        return F.conv2d(h, *self._get("out.2"), padding=1)
