"""Algorithms 3 and 4: a picture sent and received coarse to fine, over relative entropy coding.

Sender and receiver walk the same reverse chain from the same x_T, which shared randomness gives
both. At each step of the plan the sender codes a sample of q(x_s | x_t, x_0) given
p_theta(x_s | x_t); the receiver decodes it and shows x_0_hat(x_s). The sender gets its own sample
from the code that the receiver runs.
"""

from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.bands import BLOCK, band_index, to_bands
from ddpm_codec.checkpoint import Checkpoint
from ddpm_codec.constant_rate import RATE_UNIT, ConstantRate
from ddpm_codec.container import ParsePacket
from ddpm_codec.diffusion import DiffusionModel
from ddpm_codec.entropy import BitReader, Centred
from ddpm_codec.errors import ConfigError, Corrupt
from ddpm_codec.gaussian import DiagonalGaussian
from ddpm_codec.header import MODEL_HASH_BYTES, VERSION, Header
from ddpm_codec.prefix import Nearby
from ddpm_codec.relative_entropy import (
    Dithered,
    Gaussian,
    MaxProjection,
    MinimalRandomCoding,
    OrderedRandomCoding,
    PoissonFunctional,
    StreamCoder,
    Trellis,
)
from ddpm_codec.relative_entropy.pfr import MOST_BLOCK_BITS
from ddpm_codec.relative_entropy.trellis import FIRST_RANK
from ddpm_codec.reverse import ReverseStep, Walk, reverse_chain
from ddpm_codec.shared_randomness import Floats, Indices, SharedRandomness, block_address
from ddpm_codec.stepping import NODES
from ddpm_codec.units import to_uint8

BACKENDS = ("mrc", "orc", "pfr", "trellis", "max_projection", "dithered")
"""By their number in the header."""

IDEAL = "ideal"
"""Draws q and charges its KL: a reference to walk beside the backends. It makes no stream."""

MAX_PIXELS = 1 << 24
MAX_DIMS = 3 * MAX_PIXELS
TRELLIS_RADIX = 32
"""The trellis's parameter in the header: kappa + 32 (b - 1)."""
NEW_BITS = 2
"""The trellis's b: 1 gave the same overhead within 1 % for 1.4 times the search."""
EFFORTS = {"fast": 12, "medium": 14, "high": 16, "slow": 18}
"""kappa of the trellis: its search takes time in proportion to 2^kappa and to the pixels."""
_DEFAULT_EFFORTS = ((1 << 17, "high"), (1 << 22, "medium"), (MAX_DIMS, "fast"))

DEFAULT_BLOCK_BITS = {
    "mrc": 12,
    "orc": 12,
    "pfr": 4,
    "max_projection": 12,
    "dithered": 0,
    IDEAL: 0,
}
IDEAL_NUMBER = 31
_DIAGONALS = 2 * BLOCK - 1
_CHROMA_BLOCK = (1 << 16) - 1
_PRIOR_STEP = (1 << 16) - 1
_COUNT_PARAMETER = 2
_OVERSHOOT_BITS = 2.0
_KL_CLASS = Centred(5)
_PFR_EPSILON = 1e-2


def default_block_bits(backend: str, dims: int) -> int:
    """A coder's parameter for pictures of `dims` dimensions: the trellis's falls with the size."""
    if backend != "trellis":
        return DEFAULT_BLOCK_BITS[backend]
    return next(EFFORTS[effort] for most, effort in _DEFAULT_EFFORTS if dims <= most)


def trellis_parameters(block_bits: int) -> tuple[int, int]:
    """(kappa, b) of the trellis from its parameter in the header."""
    return block_bits % TRELLIS_RADIX, block_bits // TRELLIS_RADIX + 1


def make_coder(header: Header, previous: list[int], sigma_q: float | None = None) -> StreamCoder:
    """The coder of a packet: its size is coded around that of the `previous` one, [] at first.

    `sigma_q`: q's standard deviation; a coder without can only parse. ConfigError for a parameter
    that the coder doesn't take.
    """
    backend, k = BACKENDS[header.backend], header.block_bits
    if header.rate and backend != "trellis":
        raise ConfigError(f"constant-rate stepping with {backend}: only the trellis has it")
    rank = Nearby(previous[0] if previous else FIRST_RANK)
    if backend == "trellis":
        kappa, new_bits = trellis_parameters(k)
        if header.rate:
            return ConstantRate(header.rate * RATE_UNIT, kappa, new_bits, previous)
        return Trellis(kappa, new_bits, rank)
    if backend == "max_projection":
        return MaxProjection(k, rank)
    if backend == "dithered":
        groups = None
        if sigma_q is not None:
            groups = _frequency_groups(header.height, header.width)[: header.dims]
        return Dithered(_DIAGONALS * min(header.planes, 2), groups, sigma_q or 1.0)
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


@lru_cache(maxsize=4)  # 24 bytes a pixel
def _frequency_groups(height: int, width: int) -> Indices:
    """(D,) the coefficients of `to_bands` by the sum of their frequencies, luma and chroma."""
    index = band_index(3, height, width).numpy()
    channel, frequency = np.divmod(index, BLOCK**2)
    diagonal = frequency // BLOCK + frequency % BLOCK
    return np.asarray(diagonal + _DIAGONALS * (channel > 0)).ravel()


def packet_parser(header: Header) -> ParsePacket:
    """How to parse the packets of a stream, without its model. Corrupt for an unknown coder."""
    if header.backend >= len(BACKENDS):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(BACKENDS))
        raise Corrupt(f"relative entropy coder number {header.backend}; this program has {known}")
    if header.width * header.height > MAX_PIXELS:
        raise Corrupt(f"a picture of {header.width}x{header.height}: at most {MAX_PIXELS} pixels")
    try:
        make_coder(header, [])
    except ConfigError as error:
        raise Corrupt(f"the header's block parameter is damaged: {error}") from error

    def parse(previous: list[int], reader: BitReader) -> list[int]:
        return make_coder(header, previous).read(header.dims, reader)

    return parse


class ProgressiveCodec:
    """Sends and receives with one checkpoint. ConfigError if it has no calibration or plan."""

    def __init__(self, source: Checkpoint) -> None:
        if source.plan is None:
            raise ConfigError("this checkpoint has no plan: run `ddpm-codec calibrate`")
        self._source = source
        self.model = source.model("calibrated")
        self.plan = source.plan
        self.hash = bytes.fromhex(source.hash)[:MODEL_HASH_BYTES]
        T = self.model.schedule.T
        self.nodes = self.model.schedule.log_snr_grid(min(NODES, T))
        """The timesteps that constant-rate stepping chooses from."""

    @cached_property
    def exact_model(self) -> DiffusionModel:
        """`model` in float64: where x_0 follows, both sides must come to the same numbers."""
        return self._source.model("calibrated", float64=True)

    def header(
        self, pixels: Tensor, backend: str, block_bits: int | None, seed: int, rate_bits: int = 0
    ) -> Header:
        """The header of a stream of `pixels` (3,H,W), with `rate_bits` a block under constant-rate
        stepping. `block_bits`: the coder's parameter (kappa of the trellis). ConfigError for what
        the header can't hold or the coder doesn't take."""
        height, width = pixels.shape[1:]
        dims = 3 * min(height * width, MAX_PIXELS)
        parameter = default_block_bits(backend, dims)
        if block_bits is not None:
            parameter = block_bits
        if backend == "trellis" and parameter < TRELLIS_RADIX:
            parameter += TRELLIS_RADIX * (NEW_BITS - 1)
        header = Header(
            model=self.hash,
            width=width,
            height=height,
            backend=IDEAL_NUMBER if backend == IDEAL else BACKENDS.index(backend),
            block_bits=parameter,
            packets=0 if rate_bits else self.plan.steps,
            seed=seed,
            rate=-(-rate_bits // RATE_UNIT),
            grey=is_grey(pixels),
        )
        header.check()
        self.check_size(header)
        if backend != IDEAL:
            make_coder(header, [])
        return header

    def check_size(self, header: Header) -> None:
        """Raise ConfigError for a picture too large to begin with."""
        if header.width * header.height > MAX_PIXELS:
            raise ConfigError(
                f"a picture of {header.width}x{header.height}: at most {MAX_PIXELS} pixels"
            )

    def prior_sample(self, header: Header) -> Tensor:
        """(1,3,H,W) x_T ~ N(0, I), known to both sides at no cost."""
        shared = SharedRandomness(header.seed, VERSION)
        x_T = shared.normals(block_address(_PRIOR_STEP, 0), 0, 3 * header.width * header.height)
        return torch.from_numpy(x_T).view(1, 3, header.height, header.width)

    def whole_sample(
        self, header: Header, number: int, step: ReverseStep, row: int, s: int, sample: Floats
    ) -> Tensor:
        """(3,H,W) x_s in bands from the coded `sample` (D,) of one image of `step`.

        Of a grey picture only luma is coded. The receiver knows that x_0 has no chroma, so it knows
        q(x_s | x_t, x_0) there, and draws it with shared randomness at no cost.
        """
        x_t = step.x_t[row : row + 1]
        if not header.grey:
            return torch.from_numpy(sample).to(x_t.dtype).view_as(x_t[0])
        q = self.model.schedule.posterior(int(step.t[row]), s)
        shared = SharedRandomness(header.seed, VERSION)
        noise = shared.normals(block_address(number, _CHROMA_BLOCK), 0, 2 * header.dims)
        known = to_bands(x_t)[0, 1:].double().flatten().numpy()
        chroma = float(q.x_t_weight) * known + float(np.sqrt(q.variance)) * noise
        return torch.from_numpy(np.concatenate([sample, chroma])).to(x_t.dtype).view_as(x_t[0])

    def next_timestep(self, header: Header, number: int, t: int, jump: int) -> int:
        """The s of a packet from t: the plan's, or `jump` nodes on, or, with `header.last` and for
        the last packet, a part of the plan's way. Corrupt past the end."""
        if not header.rate:
            planned = int(self.plan.timesteps[number + 1])
            is_short = header.last and number == header.packets - 1
            return part_of_step(t, planned, header.last) if is_short else planned
        to = int(np.searchsorted(-self.nodes, -t)) + jump
        if to >= len(self.nodes):
            raise Corrupt("a step beyond the end of the walk: the stream is damaged")
        return int(self.nodes[to])

    def last_timestep(self, header: Header) -> int:
        """Where a whole walk ends."""
        return 1 if header.rate else int(self.plan.timesteps[-1])

    def sigma_q(self, t: int, s: int) -> float:
        """The standard deviation of q(x_s | x_t, x_0), sqrt(beta_tilde)."""
        return float(np.sqrt(self.model.schedule.posterior(t, s).variance))

    def start(self, header: Header, pictures: int = 1) -> tuple[Walk, ReverseStep]:
        """A walk of so many pictures from x_T, standing at T."""
        model = self.exact_model if header.lossless else self.model
        x_T = self.prior_sample(header).repeat(pictures, 1, 1, 1)
        x_T = x_T if header.lossless else x_T.float()
        walk = reverse_chain(model, x_T, torch.full((pictures,), model.schedule.T))
        return walk, next(walk)


def part_of_step(t: int, planned: int, last: int) -> int:
    """The s of so many 256ths of the way from t to `planned`, at least one timestep away."""
    return t - max(1, (t - planned) * last >> 8)


def is_grey(pixels: Tensor) -> bool:
    """Whether the channels (..., 3, H, W) are equal everywhere."""
    return bool((pixels == pixels[..., :1, :, :]).all())


def as_shown(header: Header, x_0_hat: Tensor) -> Tensor:
    """(3,H,W) uint8 what a receiver shows of x_0_hat (3,H,W)."""
    if header.grey:
        x_0_hat = x_0_hat.mean(dim=0, keepdim=True).expand_as(x_0_hat)
    return to_uint8(x_0_hat)


def gaussian_row(gaussian: DiagonalGaussian, row: int, planes: int = 3) -> Gaussian:
    """The first planes of one image of a batch, flat (D,) and in float64."""
    mean = gaussian.mean[row, :planes].double()
    variance = gaussian.variance[row].double().expand_as(gaussian.mean[row])[:planes]
    return Gaussian(mean.flatten().numpy(), np.sqrt(variance.flatten().numpy()))
