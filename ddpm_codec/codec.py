"""Algorithms 3 and 4: a picture sent and received coarse to fine, over relative entropy coding.

Sender and receiver walk the same reverse chain from the same x_T, which shared randomness gives
both. At each step of the plan the sender codes a sample of q(x_s | x_t, x_0) given
p_theta(x_s | x_t); the receiver decodes it and shows x_0_hat(x_s). The sender gets its own sample
from the code that the receiver runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.checkpoint import Checkpoint
from ddpm_codec.container import (
    MODEL_HASH_BYTES,
    VERSION,
    Header,
    ParsePacket,
)
from ddpm_codec.diffusion import ReverseStep, Walk, reverse_chain
from ddpm_codec.discretized import DiscretizedGaussian
from ddpm_codec.entropy import BitReader, Centred
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.gaussian import DiagonalGaussian
from ddpm_codec.relative_entropy import (
    Gaussian,
    MinimalRandomCoding,
    OrderedRandomCoding,
    PoissonFunctional,
    StreamCoder,
    Trellis,
)
from ddpm_codec.relative_entropy.pfr import MOST_BLOCK_BITS
from ddpm_codec.shared_randomness import SharedRandomness, block_address

BACKENDS = ("mrc", "orc", "pfr", "trellis")
"""By their number in the header."""

IDEAL = "ideal"
"""Draws q and charges its KL: a reference to walk beside the backends. It makes no stream."""

DEFAULT_BLOCK_BITS = {"mrc": 12, "orc": 12, "pfr": 4, "trellis": 16, IDEAL: 0}
IDEAL_NUMBER = 127
MAX_PIXELS = 1 << 20
_PRIOR_STEP = (1 << 16) - 1
_COUNT_PARAMETER = 2
_FIRST_RANK, _RANK_PARAMETER = 10, 2
_OVERSHOOT_BITS = 2.0
_KL_CLASS = Centred(5)
_PFR_EPSILON = 1e-2


def make_coder(header: Header, previous: list[int]) -> StreamCoder:
    """The coder of a packet: its size is coded around that of the `previous` one, [] at first."""
    backend, k = BACKENDS[header.backend], header.block_bits
    if backend == "trellis":
        return Trellis(k, Centred(previous[0] if previous else _FIRST_RANK, _RANK_PARAMETER))
    count = Centred(len(previous) or 1, _COUNT_PARAMETER)
    if backend == "pfr":
        return PoissonFunctional(
            float(k),
            epsilon=_PFR_EPSILON,
            count=count,
            kl_class=_KL_CLASS,
            spread_bits=MOST_BLOCK_BITS - float(k),
        )
    overshoot = min(_OVERSHOOT_BITS, k - 1.0)
    if backend == "mrc":
        return MinimalRandomCoding(k, overshoot, count)
    return OrderedRandomCoding(k, overshoot, count, _KL_CLASS)


def packet_parser(header: Header) -> ParsePacket:
    """How to parse the packets of a stream, without its model. Corrupt for an unknown coder."""
    if header.backend >= len(BACKENDS):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(BACKENDS))
        raise Corrupt(f"relative entropy coder number {header.backend}; this program has {known}")
    try:
        make_coder(header, [])
    except ConfigError as error:
        raise Corrupt(f"the header's block parameter is damaged: {error}") from error

    def parse(previous: list[int], reader: BitReader) -> list[int]:
        return make_coder(header, previous).read(header.dims, reader)

    return parse


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Run torch on one thread: its sums then have one order, whatever the machine's cores."""
    threads = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class ProgressiveCodec:
    """Sends and receives with one checkpoint. ConfigError if it has no calibration or plan."""

    def __init__(self, source: Checkpoint) -> None:
        if source.plan is None:
            raise ConfigError("this checkpoint has no plan: run `ddpm-codec calibrate`")
        self.model = source.model("calibrated")
        self.plan = source.plan
        self.hash = bytes.fromhex(source.hash)[:MODEL_HASH_BYTES]
        self.stride = source.config.unet.stride

    def header(self, pixels: Tensor, backend: str, block_bits: int | None, seed: int) -> Header:
        """The header of a stream of `pixels` (3,H,W). ConfigError for what it can't hold."""
        height, width = pixels.shape[1:]
        header = Header(
            model=self.hash,
            width=width,
            height=height,
            backend=IDEAL_NUMBER if backend == IDEAL else BACKENDS.index(backend),
            block_bits=DEFAULT_BLOCK_BITS[backend] if block_bits is None else block_bits,
            packets=self.plan.steps,
            seed=seed,
        )
        header.check()
        self.check_size(header)
        if backend != IDEAL:
            make_coder(header, [])
        return header

    def check_size(self, header: Header) -> None:
        """Raise ConfigError for a size that this model can't take."""
        if header.width % self.stride or header.height % self.stride:
            raise ConfigError(
                f"a picture of {header.width}x{header.height}: this model takes sides in "
                f"multiples of {self.stride}"
            )
        if header.width * header.height > MAX_PIXELS:
            raise ConfigError(
                f"a picture of {header.width}x{header.height}: at most {MAX_PIXELS} pixels"
            )

    def prior_sample(self, header: Header) -> Tensor:
        """(1,3,H,W) x_T ~ N(0, I), known to both sides at no cost."""
        shared = SharedRandomness(header.seed, VERSION)
        x_T = shared.normals(block_address(_PRIOR_STEP, 0), 0, header.dims)
        return torch.from_numpy(x_T).float().view(1, 3, header.height, header.width)

    def start(self, x_T: Tensor) -> tuple[Walk, ReverseStep]:
        """A walk from x_T (N,3,H,W), standing at T."""
        walk = reverse_chain(self.model, x_T, torch.full((len(x_T),), self.model.schedule.T))
        return walk, next(walk)


def gaussian_row(gaussian: DiagonalGaussian, row: int) -> Gaussian:
    """One image of a batch, flat (D,) and in float64."""
    mean = gaussian.mean[row].double().flatten().numpy()
    variance = gaussian.variance[row].double().expand_as(gaussian.mean[row]).flatten().numpy()
    return Gaussian(mean, np.sqrt(variance))


def decoder_row(step: ReverseStep, row: int) -> DiscretizedGaussian:
    """p(x_0 | x_t) of one image (3,H,W) of a batch."""
    decoder = step.decoder()
    return DiscretizedGaussian(decoder.mean[row], decoder.std.expand_as(decoder.mean)[row])


def pixel_parameters(decoder: DiscretizedGaussian) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std), each (D,) float64."""
    return decoder.mean.double().flatten().numpy(), decoder.std.double().flatten().numpy()
