"""`send`, `receive`, `info` and `truncate`."""

import sys
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import click
import torch

from ddpm_codec import archive
from ddpm_codec.cli.common import (
    FilePath,
    Finite,
    ckpt_option,
    load_checkpoint,
    progress_bar,
    read_bytes,
    seed_option,
    write_bytes,
    write_json,
)
from ddpm_codec.codec import (
    BACKENDS,
    EFFORTS,
    ProgressiveCodec,
    is_grey,
    packet_parser,
    trellis_parameters,
)
from ddpm_codec.constant_rate import LEAST_RATE, MOST_RATE, RATE_UNIT
from ddpm_codec.container import read_stream, truncate
from ddpm_codec.data import list_images, read_image, write_image
from ddpm_codec.errors import ConfigError, DataError, OutOfReach, Truncated
from ddpm_codec.files import check_outputs, make_folder
from ddpm_codec.outgoing import Target
from ddpm_codec.receiving import Receiver
from ddpm_codec.sending import Sent, send

SUFFIX = ".ddpm"
_PIECE = 1 << 12
_MOST_BYTES = 1 << 40


@click.command("send")
@click.argument("image", type=FilePath)
@click.option(
    "-o",
    "--out",
    type=FilePath,
    help="Stream to write, - for standard output [default: IMAGE.ddpm]; for a folder of "
    "images, the folder to write into.",
)
@ckpt_option
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="trellis",
    show_default=True,
    help="Relative entropy coder.",
)
@click.option("--effort", type=click.Choice(list(EFFORTS)), help="Of the trellis's search.")
@click.option("--block-bits", type=click.IntRange(1, 24),
              help="Bits of a block's search; kappa of the trellis.")  # fmt: skip
@click.option("--rate-bits", type=click.IntRange(LEAST_RATE, MOST_RATE),
              help="Constant-rate stepping, blocks of so many bits.")  # fmt: skip
@click.option("--lossless", is_flag=True, help="Send x_0 as well.")
@click.option("--max-bytes", type=click.IntRange(1), help="Stop before the file grows longer.")
@click.option("--bpd", type=Finite(0, min_open=True), help="The same in bits/dim.")
@click.option("--psnr", type=Finite(0), help="Stop at this PSNR in dB.")
@seed_option
@click.option("--ledger", type=FilePath, help="Write where the bits went, as JSON.")
def send_command(
    image: Path,
    out: Path | None,
    ckpt: Path | None,
    backend: str,
    effort: str | None,
    block_bits: int | None,
    rate_bits: int | None,
    lossless: bool,
    max_bytes: int | None,
    bpd: float | None,
    psnr: float | None,
    seed: int,
    ledger: Path | None,
) -> None:
    """Send IMAGE to a file, coarse to fine (Algorithm 3). A folder is sent picture by picture."""
    paths = list_images(image) if image.is_dir() else [image]
    if image.is_dir() and (out is None or str(out) == "-"):
        raise ConfigError(f"{image}: a folder of images needs -o with a folder to write into")
    if max_bytes is not None and bpd is not None:
        raise ConfigError("choose one of --lossless, --max-bytes, --bpd and --psnr")
    if effort is not None and (backend != "trellis" or block_bits is not None):
        raise ConfigError("--effort is the trellis's, in place of --block-bits")
    search_bits = block_bits if effort is None else EFFORTS[effort]
    outs = _outputs(image, out, paths)
    check_outputs([ledger], [*paths, ckpt], outs)
    codec = ProgressiveCodec(load_checkpoint(ckpt))
    groups: dict[tuple[int, int, int], list[int]] = {}
    pictures = [torch.from_numpy(read_image(p).copy()).permute(2, 0, 1).contiguous() for p in paths]
    for index, picture in enumerate(pictures):
        _, height, width = picture.shape
        groups.setdefault((1 if is_grey(picture) else 3, height, width), []).append(index)
    sent: dict[int, Sent] = {}
    missed: list[str] = []
    with progress_bar("sending", "packet") as bar:
        bar.reset(len(paths) * codec.plan.steps)
        for shape, indices in groups.items():
            dims = shape[0] * shape[1] * shape[2]
            limit = max_bytes if bpd is None else int(min(bpd * dims / 8, _MOST_BYTES))
            target = Target(limit, psnr, lossless)
            batch = torch.stack([pictures[i] for i in indices])
            results: Sequence[Sent | None]
            try:
                results = send(
                    codec, batch, target, backend, search_bits, seed, bar.update, rate_bits or 0
                )
            except OutOfReach as error:
                if not image.is_dir():
                    raise
                results = error.sent
            for index, result in zip(indices, results, strict=True):
                if result is None:
                    missed.append(paths[index].name)
                else:
                    sent[index] = result
                    write_bytes(outs[index], result.stream)
    reports = [sent[i].ledger.as_json() if i in sent else None for i in range(len(paths))]
    if ledger is not None:
        write_json(ledger, reports if image.is_dir() else reports[0])
    if str(outs[0]) != "-":
        _echo_sent(paths, outs, reports)
    if missed:
        raise OutOfReach(f"--psnr {psnr}: out of reach of {', '.join(sorted(missed))}")


def _outputs(image: Path, out: Path | None, paths: list[Path]) -> list[Path]:
    """Where each stream goes."""
    if image.is_dir() and out is not None:
        make_folder(out)
        return [out / (path.name + SUFFIX) for path in paths]
    return [out or image.with_name(image.name + SUFFIX)]


def _echo_sent(paths: list[Path], outs: list[Path], reports: list[dict[str, Any] | None]) -> None:
    for path, out, report in zip(paths, outs, reports, strict=True):
        if report is None:
            continue
        quality = _quality(report)
        overhead = report["overhead"]
        click.echo(
            f"{path} -> {out}: {report['file_bytes']} bytes, {report['bpd']:.3f} bits/dim, "
            f"{len(report['steps'])} packets, {quality}"
            + ("" if overhead is None else f", {overhead:+.1%} over the ideal bits of its walk")
        )


def _quality(report: dict[str, Any]) -> str:
    if report["decoder_bits"]:
        return "lossless"
    psnr = [step["psnr_db"] for step in report["steps"]][-1:]
    if not psnr:
        return "nothing of the picture"
    return "every pixel equal" if psnr[0] is None else f"{psnr[0]:.2f} dB"


@click.command()
@click.argument("stream", type=FilePath)
@click.option("-o", "--out", type=FilePath, help="PNG to write [default: STREAM.png].")
@ckpt_option
@click.option("--previews", type=FilePath, help="Folder for the picture after every packet.")
def receive(stream: Path, out: Path | None, ckpt: Path | None, previews: Path | None) -> None:
    """Receive a picture from STREAM, a file or - for standard input (Algorithm 4).

    A stream that was cut leaves the best picture it holds, says so, and exits with status 1.
    """
    if out is None:
        if str(stream) == "-":
            raise ConfigError("reading from standard input needs -o")
        if stream.is_dir():
            raise DataError(f"{stream}: is a folder; a stream was expected")
        out = stream.with_name(stream.name + ".png")
    check_outputs([out], [stream, ckpt])
    data = None if str(stream) == "-" else read_bytes(stream)
    if previews is not None:
        make_folder(previews)
    receiver = Receiver(ProgressiveCodec(load_checkpoint(ckpt)))
    with progress_bar("receiving", "packet") as bar:
        for piece in _pieces(data):
            for t, picture in receiver.feed(piece):
                bar.update(1)
                if previews is not None:
                    _write_picture(previews / f"t{t:04d}.png", picture, receiver)
    try:
        picture = receiver.close()
    except Truncated:
        if receiver.picture is not None:
            _write_picture(out, receiver.picture, receiver)
        raise
    _write_picture(out, picture, receiver)
    click.echo(f"{stream} -> {out}: {picture.shape[2]}x{picture.shape[1]}")


def _pieces(data: bytes | None) -> Any:
    if data is not None:
        yield data
        return
    stdin = cast(BufferedReader, sys.stdin.buffer)
    while piece := stdin.read1(_PIECE):  # what is there, without waiting for more
        yield piece


def _write_picture(path: Path, picture: torch.Tensor, receiver: Receiver) -> None:
    """A picture (3,H,W) as it was sent: in colour, or grey."""
    header = receiver.reader.header
    if header is not None and header.grey:
        write_image(path, picture[0].contiguous().numpy())
    else:
        write_image(path, picture.permute(1, 2, 0).contiguous().numpy())


@click.command()
@click.argument("stream", type=FilePath)
@click.option("--json", "json_file", type=FilePath, help="Write it as JSON.")
def info(stream: Path, json_file: Path | None) -> None:
    """Describe a stream or an archive: pictures, packets, bytes. Needs no model."""
    check_outputs([json_file], [stream])
    data = read_bytes(stream)
    report = _describe_archive(data) if data.startswith(archive.MAGIC) else _describe(data)
    if json_file is not None:
        write_json(json_file, report)
    for name, value in report.items():
        click.echo(f"{name:16s} {value}")


def _describe(data: bytes) -> dict[str, Any]:
    reader, _, cut = read_stream(data, packet_parser)
    header = reader.header
    assert header is not None
    block_bits, new_bits = header.block_bits, None
    if BACKENDS[header.backend] == "trellis":
        block_bits, new_bits = trellis_parameters(block_bits)
    return {
        "file_bytes": len(data),
        "complete": cut is None,
        "width": header.width,
        "height": header.height,
        "grey": header.grey,
        "model": header.model.hex(),
        "backend": BACKENDS[header.backend],
        "block_bits": block_bits,
        "new_bits": new_bits,
        "rate_bits": header.rate * RATE_UNIT or None,
        "seed": header.seed,
        "lossless": header.lossless,
        "packets": header.packets,
        "last_step": header.last / 256 or None,
        "packets_present": len(reader.packet_ends),
        "header_bytes": len(header.pack()),
        "packet_end_bits": reader.packet_ends,
        "x_0_bytes": None if reader.x_0 is None else len(reader.x_0),
    }


def _describe_archive(data: bytes) -> dict[str, Any]:
    parts = archive.read_archive(data)
    return {
        "file_bytes": len(data),
        "images": len(parts.kinds),
        "pixels": sum(kind.width * kind.height for kind in parts.kinds),
        "grey": sum(kind.grey for kind in parts.kinds),
        "named": bool(parts.names),
        "model": parts.model.hex(),
        "steps": parts.steps,
        "initial_bytes": 4 * parts.initial,
        "stack_bytes": 4 * len(parts.words),
    }


@click.command("truncate")
@click.argument("stream", type=FilePath)
@click.option("--max-bytes", type=click.IntRange(1), required=True)
@click.option("-o", "--out", type=FilePath, required=True, help="Stream to write, - for output.")
def truncate_command(stream: Path, max_bytes: int, out: Path) -> None:
    """Cut a stream at a packet boundary and end it properly. Needs no model."""
    check_outputs([], [stream], [out])
    shorter = truncate(read_bytes(stream), max_bytes, packet_parser)
    write_bytes(out, shorter)
    if str(out) != "-":
        click.echo(f"{stream} -> {out}: {len(shorter)} bytes")
