"""Algorithm 4: a picture received, coarse to fine, from bytes as they come."""

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm_codec.bands import from_bands
from ddpm_codec.codec import (
    ProgressiveCodec,
    as_shown,
    gaussian_row,
    make_coder,
    packet_parser,
)
from ddpm_codec.container import ParsePacket, StreamReader
from ddpm_codec.errors import Corrupt, Truncated
from ddpm_codec.header import VERSION, Header, check_model
from ddpm_codec.pixel_code import decode_pixels
from ddpm_codec.reverse import ReverseStep, Walk
from ddpm_codec.shared_randomness import SharedRandomness


class Receiver:
    """Algorithm 4: `feed` it bytes, it yields pictures; `close` says whether that was all."""

    def __init__(self, codec: ProgressiveCodec) -> None:
        self.codec = codec
        self.reader = StreamReader(self._parser)
        self.picture: Tensor | None = None
        self._number = 0
        self._previous: list[int] = []
        self._walk: Walk | None = None
        self._step: ReverseStep | None = None

    def _parser(self, header: Header) -> ParsePacket:
        check_model(header.model, self.codec.hash)
        self.codec.check_size(header)
        if not header.rate and header.packets > self.codec.plan.steps:
            raise Corrupt(f"{header.packets} packets, but the plan has {self.codec.plan.steps}")
        return packet_parser(header)

    def feed(self, data: bytes) -> Iterator[tuple[int, Tensor]]:
        """(t, (3,H,W) uint8 x_0_hat(x_t)) for every packet that became whole."""
        packets = self.reader.feed(data)
        header = self.reader.header
        if header is None:
            return
        if self._step is None:
            self._walk, self._step = self.codec.start(header)
            yield self._show()
        for packet in packets:
            self._advance(header, packet)
            yield self._show()

    def _show(self) -> tuple[int, Tensor]:
        assert self._step is not None
        assert self.reader.header is not None
        self.picture = as_shown(self.reader.header, self._step.x_0_hat[0])
        return int(self._step.t[0]), self.picture

    def _advance(self, header: Header, packet: list[int]) -> None:
        assert self._walk is not None
        assert self._step is not None
        t = int(self._step.t[0])
        to = self.codec.next_timestep(header, self._number, t, packet[0])
        s = torch.tensor([to])
        p = gaussian_row(self._step.p(s), 0, header.planes)
        shared = SharedRandomness(header.seed, VERSION)
        coder = make_coder(header, self._previous, self.codec.sigma_q(t, to))
        sample = coder.sample(p, shared, self._number, packet)
        x_s = self.codec.whole_sample(header, self._number, self._step, 0, to, sample)
        self._step = self._walk.send((s, from_bands(x_s[None])))
        self._number, self._previous = self._number + 1, packet

    def close(self) -> Tensor:
        """(3,H,W) uint8 the picture; x_0 itself where it was sent.

        Raises Truncated for a cut stream (`picture` then holds the best one), Corrupt for damage.
        """
        self.reader.close()
        header = self.reader.header
        if header is None or self._step is None or self.picture is None:
            raise Truncated("the stream ends before its header does")
        if header.lossless and self.reader.x_0 is not None:
            if int(self._step.t[0]) != self.codec.last_timestep(header):
                raise Corrupt("x_0 follows a walk that is not over: the stream is damaged")
            shape = (1, header.planes, header.height, header.width)
            [planes] = decode_pixels(self.reader.x_0, self._step.decoder(header.grey), shape)
            if zlib.crc32(planes.numpy().tobytes()) != self.reader.pixel_crc:
                raise Corrupt(
                    "the decoded pixels fail their checksum: this machine's network disagrees with "
                    "the sender's"
                )
            self.picture = planes.expand_as(self.picture).contiguous()
        return self.picture
