"""Algorithm 3: pictures sent, in batches, each to its own target."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.bands import from_bands, to_bands
from ddpm_codec.bound import BATCH_PIXELS
from ddpm_codec.codec import IDEAL_NUMBER, ProgressiveCodec, gaussian_row, is_grey
from ddpm_codec.container import CRC_BYTES, finish, size_bytes
from ddpm_codec.discretized import PixelDecoder
from ddpm_codec.entropy import BitWriter
from ddpm_codec.errors import ConfigError, OutOfReach
from ddpm_codec.header import VERSION, Header
from ddpm_codec.ledger import Ledger
from ddpm_codec.outgoing import Outgoing, Target
from ddpm_codec.parallel import parallel_map
from ddpm_codec.pixel_code import encode_pixels
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.shared_randomness import SharedRandomness
from ddpm_codec.units import from_uint8

_MEMORY_BYTES = 1 << 28
"""Of codewords that the pictures of a batch share."""


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
        Outgoing(
            pixels=picture,
            header=header,
            shared=shared,
            private=np.random.default_rng([header.seed, first + index]),
            target=target,
        )
        for index, picture in enumerate(pixels)
    ]
    walk, step = codec.start(header, len(pixels))
    x_0, active = from_uint8(pixels), list(range(len(pixels)))
    last: dict[int, PixelDecoder] = {}
    before: tuple[list[int], ReverseStep] | None = None
    while active:
        for row, job in enumerate(active):
            jobs[job].observe(step.x_0_hat[row])
            if before is not None and jobs[job].is_reached:
                came = before[1].at(torch.tensor([before[0].index(job)]))
                jobs[job].shorten(codec, came, x_0[job : job + 1])
        s, x_s = _step_batch(codec, jobs, active, step, x_0)
        ended = (s == 0).nonzero().flatten().tolist()
        last |= {
            active[row]: step.at(torch.tensor([row])).decoder(header.grey)
            for row in ended
            if target.lossless
        }
        if target.psnr_db is not None and jobs[0].takes_parts:
            before = active, step
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
    jobs: list[Outgoing],
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
    q, p = part.q(x_0[active][going], s[going]), part.p(s[going])
    samples = to_bands(part.x_0_hat)

    def code(at: int) -> tuple[int, np.ndarray | None]:
        job, (to, jump), t = jobs[active[going[at]]], choices[going[at]], int(part.t[at])
        rows = (gaussian_row(gaussian, at, job.header.planes) for gaussian in (q, p))
        sample = job.send(t, to, jump, codec.sigma_q(t, to), *rows)
        if isinstance(sample, float):
            alone = part.at(torch.tensor([at]))
            return job.send_part(codec, alone, x_0[active[going[at]]][None], to, sample)
        return to, sample

    for at, (to, sample) in enumerate(parallel_map(code, range(len(going)))):
        row = int(going[at])
        s[row] = to
        if sample is not None:
            job = jobs[active[row]]
            number = len(job.packets) - 1
            samples[at] = codec.whole_sample(job.header, number, part, at, to, sample)
    x_s[going] = from_bands(samples)
    return s, x_s


def _finish(job: Outgoing, decoder: PixelDecoder | None) -> Sent | OutOfReach:
    """Close the stream and the ledger of one picture, if it has the wanted PSNR."""
    steps, wanted = [packet.step for packet in job.packets], job.target.psnr_db
    if wanted is not None:
        reached = steps[-1].psnr_db if steps else None
        if reached is not None and reached < wanted:
            return OutOfReach(
                f"--psnr {wanted}: out of reach; the whole walk gives {reached:.2f} dB"
            )
    header = replace(job.header, packets=len(steps))
    ledger = Ledger(header.dims, 8 * len(header.pack()), steps)
    if header.backend == IDEAL_NUMBER:
        assert job.picture is not None
        return Sent(b"", replace(ledger, header_bits=0), job.picture)
    x_0, crc, picture = b"", 0, job.picture
    if decoder is not None:
        planes = job.pixels[: header.planes].contiguous()
        x_0 = encode_pixels(planes[None], decoder)
        ledger.pixel_nats = -float(decoder.log_prob_nats(planes[None]).sum())
        crc, picture = zlib.crc32(planes.numpy().tobytes()), job.pixels
    writer = BitWriter()
    for packet in job.packets:
        writer.append(packet.writer)
    stream = finish(header, writer, x_0, crc)
    ledger.padding_bits = -writer.bits % 8
    ledger.checksum_bits = 8 * CRC_BYTES * (2 if header.lossless else 1)
    ledger.decoder_bits = 8 * len(stream) - ledger.total_bits
    assert picture is not None
    return Sent(stream, ledger, picture)
