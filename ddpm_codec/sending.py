"""Algorithm 3: pictures sent, in batches, each to its own target."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.bands import from_bands, to_bands
from ddpm_codec.bound import BATCH_PIXELS
from ddpm_codec.codec import (
    IDEAL_NUMBER,
    ProgressiveCodec,
    as_shown,
    gaussian_row,
    is_grey,
    make_coder,
    trellis_parameters,
)
from ddpm_codec.constant_rate import RATE_UNIT, ConstantRate, choose_jump
from ddpm_codec.container import CRC_BYTES, VERSION, Header, finish, size_bytes
from ddpm_codec.discretized import PixelDecoder
from ddpm_codec.entropy import BitReader, BitWriter
from ddpm_codec.errors import ConfigError, OutOfReach
from ddpm_codec.gaussian import DiagonalGaussian
from ddpm_codec.ledger import Ledger, Step
from ddpm_codec.parallel import parallel_map
from ddpm_codec.pixel_code import encode_pixels
from ddpm_codec.relative_entropy import Gaussian, Ideal
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.shared_randomness import SharedRandomness
from ddpm_codec.units import from_uint8, rmse_to_psnr_db

_MEMORY_BYTES = 1 << 28
"""Of codewords that the pictures of a batch share."""


@dataclass(frozen=True)
class Target:
    """Where to stop: the end of the plan, or before; `lossless` sends x_0 after the plan."""

    max_bytes: int | None = None
    psnr_db: float | None = None
    lossless: bool = False

    def check(self) -> None:
        """Raise ConfigError for targets that exclude each other."""
        chosen = [self.max_bytes is not None, self.psnr_db is not None, self.lossless]
        if sum(chosen) > 1:
            raise ConfigError("choose one of --lossless, --max-bytes, --bpd and --psnr")


def psnr_db(pixels: Tensor, shown: Tensor) -> float | None:
    """PSNR of one uint8 picture against another, in dB; None where they are equal."""
    mse = float(((shown.double() - pixels.double()) ** 2).mean())
    return float(rmse_to_psnr_db(mse**0.5)) if mse else None


@dataclass
class _Sending:
    """One picture on its way."""

    pixels: Tensor
    header: Header
    shared: SharedRandomness
    private: np.random.Generator
    writer: BitWriter
    ledger: Ledger
    target: Target
    previous: list[int] = field(default_factory=list)
    picture: Tensor | None = None

    def observe(self, x_0_hat: Tensor) -> None:
        """Note what the receiver sees now."""
        self.picture = as_shown(self.header, x_0_hat)
        if self.ledger.steps:
            self.ledger.steps[-1].psnr_db = psnr_db(self.pixels, self.picture)

    @property
    def is_reached(self) -> bool:
        """Whether the wanted PSNR is there."""
        if self.target.psnr_db is None or self.picture is None:
            return False
        seen = psnr_db(self.pixels, self.picture)
        return seen is None or seen >= self.target.psnr_db

    def choose(self, codec: ProgressiveCodec, step: ReverseStep, x_0: Tensor) -> tuple[int, int]:
        """(s, jump) of the next step from where `step` (of this one image) stands; s = 0: none."""
        t, number = int(step.t[0]), len(self.ledger.steps)
        if t == codec.last_timestep(self.header) or self.is_reached:
            return 0, 0
        jump = 0
        if self.header.rate:
            kappa, _ = trellis_parameters(self.header.block_bits)
            rate_bits = self.header.rate * RATE_UNIT
            jump = choose_jump(step, x_0, self.header.planes, codec.nodes, rate_bits, kappa)
        return codec.next_timestep(self.header, number, t, jump), jump

    def send(
        self, t: int, s: int, jump: int, sigma_q: float, q: Gaussian, p: Gaussian
    ) -> np.ndarray | None:
        """Code one step; (D,) the sample, or None where the file would grow too long."""
        number, packet, previous = len(self.ledger.steps), BitWriter(), self.previous
        if self.header.backend == IDEAL_NUMBER:
            coded = Ideal().encode(q, p, self.shared, number, packet, self.private)
        else:
            coder = make_coder(self.header, self.previous, sigma_q)
            if isinstance(coder, ConstantRate):
                coder.jump = jump
            coded = coder.encode(q, p, self.shared, number, packet, self.private)
            reader = BitReader(packet.getvalue(), packet.bits)
            previous = coder.read(self.header.dims, reader)
        if self.target.max_bytes is not None:
            size = size_bytes(self.header, self.writer.bits + packet.bits)
            if size > self.target.max_bytes:
                return None
        self.writer.append(packet)
        self.previous = previous
        self.ledger.steps.append(Step.of(t, s, coded))
        return coded.sample


@dataclass(frozen=True)
class Sent:
    """A picture sent: the stream, its ledger, and (3,H,W) uint8 what the receiver will show."""

    stream: bytes
    ledger: Ledger
    picture: Tensor


def send(
    codec: ProgressiveCodec,
    pixels: Tensor,
    target: Target | None = None,
    backend: str = "trellis",
    block_bits: int | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    rate_bits: int = 0,
) -> list[Sent]:
    """Algorithm 3 for pictures (N,3,H,W) uint8, in batches.

    `seed` seeds both the shared randomness and, apart from it, the sender's private draws: the
    same bytes for the same seed. `progress` is told of every packet. With `rate_bits` steps are
    taken at a constant rate of so many bits a block instead of along the plan. The backend `IDEAL`
    gives ledgers and pictures, with empty streams. Raises OutOfReach, at the end, where pictures
    never have the wanted PSNR; ConfigError for sizes that the model or the header can't hold.
    """
    target = target or Target()
    target.check()
    size = max(1, BATCH_PIXELS // pixels[0, 0].numel())
    sent: list[Sent | OutOfReach] = []
    header = codec.header(pixels[0], backend, block_bits, seed, rate_bits)
    header = replace(header, lossless=target.lossless, grey=is_grey(pixels))
    for batch in pixels.split(size):
        sent += _send_batch(codec, batch, len(sent), target, header, progress)
    done = [None if isinstance(result, OutOfReach) else result for result in sent]
    for result in sent:
        if isinstance(result, OutOfReach):
            raise OutOfReach(str(result), done)
    return [result for result in done if result is not None]


def _send_batch(
    codec: ProgressiveCodec,
    pixels: Tensor,
    first: int,
    target: Target,
    header: Header,
    progress: Callable[[int], object] | None,
) -> list[Sent | OutOfReach]:
    """Some of the pictures, of which so many came before."""
    if target.max_bytes is not None and size_bytes(header, 0) > target.max_bytes:
        raise ConfigError(
            f"--max-bytes {target.max_bytes}: the shortest stream has {size_bytes(header, 0)} bytes"
        )
    shared = SharedRandomness(header.seed, VERSION, _MEMORY_BYTES if len(pixels) > 1 else 0)
    jobs = [
        _Sending(
            pixels=picture,
            header=header,
            shared=shared,
            private=np.random.default_rng([header.seed, first + index]),
            writer=BitWriter(),
            ledger=Ledger(header.dims, 8 * len(header.pack())),
            target=target,
        )
        for index, picture in enumerate(pixels)
    ]
    walk, step = codec.start(header, len(pixels))
    x_0, active = from_uint8(pixels), list(range(len(pixels)))
    last: dict[int, PixelDecoder] = {}
    while active:
        for row, job in enumerate(active):
            jobs[job].observe(step.x_0_hat[row])
        s, x_s = _step_batch(codec, jobs, active, step, x_0)
        ended = (s == 0).nonzero().flatten().tolist()
        last |= {
            active[row]: step.at(torch.tensor([row])).decoder(header.grey)
            for row in ended
            if target.lossless
        }
        active = [job for job, at in zip(active, s.tolist(), strict=True) if at > 0]
        if progress is not None:
            progress(len(active))
        try:
            step = walk.send((s, x_s))
        except StopIteration:
            break
    return [_finish(job, last.get(index)) for index, job in enumerate(jobs)]


def _step_batch(
    codec: ProgressiveCodec,
    jobs: list[_Sending],
    active: list[int],
    step: ReverseStep,
    x_0: Tensor,
) -> tuple[Tensor, Tensor]:
    """(s (M,), x_s (M,3,H,W)) of the active pictures; s = 0 for those that end here."""
    one = [torch.tensor([row]) for row in range(len(active))]
    choices = [
        jobs[job].choose(codec, step.at(row), x_0[job : job + 1])
        for row, job in zip(one, active, strict=True)
    ]
    s, x_s = torch.tensor([to for to, _ in choices]), step.x_0_hat.clone()
    going = s.nonzero().flatten()
    if not len(going):
        return s, x_s
    part = step.at(going)
    q = codec.model.posterior(x_0[active][going], part.x_t, part.t, s[going])
    q, p = DiagonalGaussian(to_bands(q.mean), q.variance), part.p(s[going])
    samples = to_bands(part.x_0_hat)

    def code(at: int) -> np.ndarray | None:
        job, to = jobs[active[going[at]]], choices[going[at]]
        rows = (gaussian_row(gaussian, at, job.header.planes) for gaussian in (q, p))
        return job.send(int(part.t[at]), *to, codec.sigma_q(int(part.t[at]), to[0]), *rows)

    for at, sample in enumerate(parallel_map(code, range(len(going)))):
        row = int(going[at])
        job, to = jobs[active[row]], choices[row][0]
        if sample is None:
            s[row] = 0
        else:
            number = len(job.ledger.steps) - 1
            samples[at] = codec.whole_sample(job.header, number, part, at, to, sample)
    x_s[going] = from_bands(samples)
    return s, x_s


def _finish(job: _Sending, decoder: PixelDecoder | None) -> Sent | OutOfReach:
    """Close the stream and the ledger of one picture, if it has the wanted PSNR."""
    target, ledger = job.target, job.ledger
    if target.psnr_db is not None:
        reached = ledger.steps[-1].psnr_db if ledger.steps else None
        if reached is not None and reached < target.psnr_db:
            return OutOfReach(
                f"--psnr {target.psnr_db}: out of reach; the whole walk gives {reached:.2f} dB"
            )
    if job.header.backend == IDEAL_NUMBER:
        assert job.picture is not None
        return Sent(b"", replace(ledger, header_bits=0), job.picture)
    header = replace(job.header, packets=len(ledger.steps))
    x_0, crc, picture = b"", 0, job.picture
    if decoder is not None:
        planes = job.pixels[: header.planes].contiguous()
        x_0 = encode_pixels(planes[None], decoder)
        ledger.pixel_nats = -float(decoder.log_prob_nats(planes[None]).sum())
        crc, picture = zlib.crc32(planes.numpy().tobytes()), job.pixels
    stream = finish(header, job.writer, x_0, crc)
    ledger.padding_bits = -job.writer.bits % 8
    ledger.checksum_bits = 8 * CRC_BYTES * (2 if header.lossless else 1)
    ledger.decoder_bits = 8 * len(stream) - ledger.total_bits
    assert picture is not None
    return Sent(stream, ledger, picture)
