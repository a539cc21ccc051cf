"""One picture on its way: what is sent of it, step by step, and where to stop."""

from bisect import bisect_right
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ddpm_codec.bands import from_bands
from ddpm_codec.codec import (
    IDEAL_NUMBER,
    ProgressiveCodec,
    as_shown,
    gaussian_row,
    make_coder,
    part_of_step,
    trellis_parameters,
)
from ddpm_codec.constant_rate import RATE_UNIT, ConstantRate, choose_jump
from ddpm_codec.container import size_bytes
from ddpm_codec.entropy import BitReader, BitWriter
from ddpm_codec.errors import ConfigError
from ddpm_codec.header import Header
from ddpm_codec.ledger import Step
from ddpm_codec.relative_entropy import Gaussian, Ideal
from ddpm_codec.reverse import ReverseStep
from ddpm_codec.shared_randomness import SharedRandomness
from ddpm_codec.units import rmse_to_psnr_db

_ATTEMPTS = 4
"""At a part of a step that fits under --max-bytes: searches of the coder, no network calls."""
_HALVINGS = 3
"""Of a step whose end --psnr looks for: searches of the coder, each with a network call."""
_LESS = 0.9
"""How much less to try where a part is again too long: sizes of packets are a quarter apart."""


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


@dataclass(frozen=True)
class Packet:
    """A packet: its bits, the integers in them, and its row of the ledger."""

    writer: BitWriter
    integers: list[int]
    step: Step


@dataclass
class Outgoing:
    """One picture, `pixels` (3,H,W) uint8, on its way. `picture` is what the receiver sees by now,
    of that shape; `private` is the sender's own randomness."""

    pixels: Tensor
    header: Header
    shared: SharedRandomness
    private: np.random.Generator
    target: Target
    packets: list[Packet] = field(default_factory=list)
    picture: Tensor | None = None

    def observe(self, x_0_hat: Tensor) -> None:
        """Note what the receiver sees now."""
        self.picture = as_shown(self.header, x_0_hat)
        if self.packets:
            self.packets[-1].step.psnr_db = psnr_db(self.pixels, self.picture)

    @property
    def is_reached(self) -> bool:
        """Whether the wanted PSNR is there."""
        if self.target.psnr_db is None or self.picture is None:
            return False
        seen = psnr_db(self.pixels, self.picture)
        return seen is None or seen >= self.target.psnr_db

    @property
    def packet_bits(self) -> int:
        """Bits of all packets."""
        return sum(packet.writer.bits for packet in self.packets)

    @property
    def takes_parts(self) -> bool:
        """Whether the last step may be a part of the plan's."""
        return not self.header.rate and self.header.backend != IDEAL_NUMBER

    def choose(self, codec: ProgressiveCodec, step: ReverseStep, x_0: Tensor) -> tuple[int, int]:
        """(s, jump) of the next step from where `step` (of this one image) stands; s = 0: none."""
        t, number = int(step.t[0]), len(self.packets)
        if t == codec.last_timestep(self.header) or self.is_reached or self.header.last:
            return 0, 0
        jump = 0
        if self.header.rate:
            kappa, _ = trellis_parameters(self.header.block_bits)
            rate_bits = self.header.rate * RATE_UNIT
            jump = choose_jump(step, x_0, self.header.planes, codec.nodes, rate_bits, kappa)
        return codec.next_timestep(self.header, number, t, jump), jump

    def send(
        self, t: int, s: int, jump: int, sigma_q: float, q: Gaussian, p: Gaussian
    ) -> np.ndarray | float:
        """Code one step; (D,) the sample, or, where the file would grow too long, for which share
        of the packet there is room."""
        number, writer = len(self.packets), BitWriter()
        integers = self.packets[-1].integers if self.packets else []
        if self.header.backend == IDEAL_NUMBER:
            coded = Ideal().encode(q, p, self.shared, number, writer, self.private)
        else:
            coder = make_coder(self.header, integers, sigma_q)
            if isinstance(coder, ConstantRate):
                coder.jump = jump
            coded = coder.encode(q, p, self.shared, number, writer, self.private)
            integers = coder.read(self.header.dims, BitReader(writer.getvalue(), writer.bits))
        if self.target.max_bytes is not None:
            room = 8 * (self.target.max_bytes - size_bytes(self.header, 0)) - self.packet_bits
            if writer.bits > room:
                return room / writer.bits
        self.packets.append(Packet(writer, integers, Step.of(t, s, coded)))
        return coded.sample

    def send_part(
        self, codec: ProgressiveCodec, step: ReverseStep, x_0: Tensor, s: int, room: float
    ) -> tuple[int, np.ndarray | None]:
        """(s', (D,) sample) of as long a part of the planned `step` to s, of this one image x_0
        (1,C,H,W), as fits into the file; (0, None) where none fits. `room`: for which share, 0..1,
        of the whole packet's bits there is room."""
        t, planned, whole = int(step.t[0]), s, self.header
        kl_bits = step.kl_bits_to(x_0, whole.planes)
        for attempt in range(_ATTEMPTS if self.takes_parts else 0):
            limit = kl_bits(s) * room * (_LESS if attempt else 1.0)
            parts = [part_of_step(t, planned, last) for last in range(256)]
            parts = [part for part in parts if part > s]
            last = bisect_right(parts, limit, key=kl_bits) - 1
            if last < 1:
                break
            s, self.header = parts[last], replace(whole, last=last)
            sample = self._send_alone(codec, step, x_0, s)
            if not isinstance(sample, float):
                return s, sample
            room = sample
        self.header = whole
        return 0, None

    def shorten(self, codec: ProgressiveCodec, step: ReverseStep, x_0: Tensor) -> None:
        """Send, instead of the last packet, the shortest part of its `step`, of this one image x_0
        (1,C,H,W), by which the wanted PSNR is reached, to an eighth of it."""
        best, whole = self.packets.pop(), self.header
        found, fewest_bits = (whole, self.picture), best.writer.bits
        t, planned, short, long = best.step.t, best.step.s, 0, 256
        for _ in range(_HALVINGS if t - planned > 1 else 0):
            last = (short + long) // 2
            s, self.header = part_of_step(t, planned, last), replace(whole, last=last)
            sample = self._send_alone(codec, step, x_0, s)
            assert not isinstance(sample, float)  # there is no other target
            number = len(self.packets) - 1
            x_s = codec.whole_sample(self.header, number, step, 0, s, sample)[None]
            self.observe(codec.model.estimate(from_bands(x_s), torch.tensor([s])).x_0_hat[0])
            is_reached, packet = self.is_reached, self.packets.pop()
            short, long = (short, last) if is_reached else (last, long)
            bits = packet.writer.bits + 8  # of the header
            if is_reached and bits < fewest_bits:
                best, found, fewest_bits = packet, (self.header, self.picture), bits
        self.packets.append(best)
        self.header, self.picture = found

    def _send_alone(
        self, codec: ProgressiveCodec, step: ReverseStep, x_0: Tensor, s: int
    ) -> np.ndarray | float:
        """`send` from where `step` of this one image x_0 (1,C,H,W) stands to any s."""
        to, t = torch.tensor([s]), int(step.t[0])
        pair = (step.q(x_0, to), step.p(to))
        rows = (gaussian_row(gaussian, 0, self.header.planes) for gaussian in pair)
        return self.send(t, s, 0, codec.sigma_q(t, s), *rows)
