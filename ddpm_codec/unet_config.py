"""The shape of a `UNet`, and the two that have names."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ddpm_codec.errors import ConfigError

GROUPS = 32
"""Of group normalisation."""
MOST_OCTAVE = 16
MOST_EXPERTS = 8


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a `UNet`.

    `patch`: side of the pixel-unshuffle stem (1: none). `fourier`: the octaves n of the input
    features sin(2^n pi x), cos(2^n pi x) (Kingma et al. 2021, Appendix C). `attention`: the
    levels of `multipliers` with self-attention, of `heads` heads; where there are any, the middle
    has it too. `norm`: "group", or "pixel" for layer normalisation over the channels of each pixel.
    `scale_shift`: the time embedding scales and shifts (Dhariwal & Nichol 2021, AdaGN) instead of
    being added. `block`: "residual", of two 3x3 convolutions, or "gated", of 1x1 convolutions and
    depthwise 3x3 ones. `log_variance`: a second output of the network. `experts`: the last
    timesteps of all halves upward but the last, where there are several. `dialect`: details in
    which OpenAI's code differs from that of Ho et al.: sinusoids, padding of the downsampling, and
    the epsilon of group normalisation.
    """

    image_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1,)
    norm: Literal["group", "pixel"] = "group"
    dropout: float = 0.1
    patch: int = 1
    fourier: tuple[int, ...] = ()
    log_variance: bool = False
    heads: int = 1
    scale_shift: bool = False
    dialect: Literal["ho", "openai"] = "ho"
    block: Literal["residual", "gated"] = "residual"
    experts: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise ConfigError for a shape that can't be built or is absurdly large."""
        bounded = {
            "image_channels": (self.image_channels, 1, 16),
            "channels": (self.channels, 4, 1024),
            "blocks": (self.blocks, 1, 16),
            "levels": (len(self.multipliers), 1, 8),
            "patch": (self.patch, 1, 8),
            "octaves": (len(self.fourier), 0, 8),
            "heads": (self.heads, 1, 64),
        }
        for name, (value, least, most) in bounded.items():
            if not least <= value <= most:
                raise ConfigError(f"a U-Net with {name}={value}: {least}..{most} expected")
        if not all(1 <= m <= 16 for m in self.multipliers) or not 0 <= self.dropout < 1:
            raise ConfigError("a U-Net with multipliers outside 1..16 or dropout outside [0, 1)")
        if not all(0 <= level < len(self.multipliers) for level in self.attention):
            raise ConfigError("a U-Net with attention at a level that it does not have")
        if not all(0 <= octave <= MOST_OCTAVE for octave in self.fourier):
            raise ConfigError(f"a U-Net with octaves outside 0..{MOST_OCTAVE}")
        cuts = (0, *self.experts)
        if len(cuts) > MOST_EXPERTS or any(a >= b for a, b in pairwise(cuts)):
            raise ConfigError(f"experts up to timesteps {self.experts}: they must rise from 1")
        if self.channels % 2:
            raise ConfigError(f"{self.channels} channels: the sinusoids of t need an even number")
        if self.channels % self.heads:
            raise ConfigError(f"{self.heads} heads don't divide {self.channels} channels")
        if self.norm == "group" and self.channels % GROUPS:
            raise ConfigError(f"group normalisation needs channels in multiples of {GROUPS}")

    @property
    def embedding(self) -> int:
        """Width of the time embedding that the blocks see."""
        return self.channels * (4 if self.block == "residual" else 1)

    @property
    def stride(self) -> int:
        """Sides of the input are filled up to multiples of this."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


PRESETS = {
    "paper": UNetConfig(),
    "small": UNetConfig(
        channels=128,
        multipliers=(1,),
        blocks=4,
        attention=(),
        norm="pixel",
        dropout=0.0,
        patch=2,
        log_variance=True,
        block="gated",
        experts=(65,),
    ),
    "medium": UNetConfig(
        channels=192,
        multipliers=(1, 2),
        blocks=4,
        attention=(),
        norm="pixel",
        dropout=0.0,
        patch=2,
        log_variance=True,
        block="gated",
    ),
}
