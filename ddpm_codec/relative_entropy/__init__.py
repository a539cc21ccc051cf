"""Relative entropy coders: a sample of q, sent to a receiver who knows p."""

from ddpm_codec.relative_entropy.dithered import Dithered
from ddpm_codec.relative_entropy.ideal import Ideal
from ddpm_codec.relative_entropy.max_projection import MaxProjection
from ddpm_codec.relative_entropy.mrc import MinimalRandomCoding
from ddpm_codec.relative_entropy.orc import OrderedRandomCoding
from ddpm_codec.relative_entropy.pfr import PoissonFunctional
from ddpm_codec.relative_entropy.protocol import (
    Coded,
    Gaussian,
    Private,
    RelativeEntropyCoder,
    StreamCoder,
    kl_bits,
    projection,
)
from ddpm_codec.relative_entropy.trellis import Trellis

__all__ = [
    "Coded",
    "Dithered",
    "Gaussian",
    "Ideal",
    "MaxProjection",
    "MinimalRandomCoding",
    "OrderedRandomCoding",
    "PoissonFunctional",
    "Private",
    "RelativeEntropyCoder",
    "StreamCoder",
    "Trellis",
    "kl_bits",
    "projection",
]
