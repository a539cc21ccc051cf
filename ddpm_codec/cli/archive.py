"""`pack` and `unpack`."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from ddpm_codec.archive import MAX_NAME_BYTES, Archive, pack, read_archive, unpack
from ddpm_codec.cli.common import (
    FilePath,
    ckpt_option,
    load_checkpoint,
    progress_bar,
    read_bytes,
    write_bytes,
    write_json,
)
from ddpm_codec.data import NAMED, list_images, load_batch, read_image, write_image
from ddpm_codec.errors import ConfigError
from ddpm_codec.files import atomic, check_outputs, make_folder


@click.command("pack")
@click.argument("data")
@click.option("-o", "--out", type=FilePath, required=True,
              help="Archive to write, - for standard output.")  # fmt: skip
@ckpt_option
@click.option("--limit", type=click.IntRange(1), help="Pack only the first N pictures.")
@click.option(
    "--steps",
    type=click.IntRange(2),
    default=50,
    show_default=True,
    help="Of the chain: network calls a picture. More come closer to the bound.",
)
@click.option("--json", "json_file", type=FilePath, help="Write the figures as JSON.")
def pack_command(
    data: str, out: Path, ckpt: Path | None, limit: int | None, steps: int, json_file: Path | None
) -> None:
    """Pack DATA losslessly into one archive, by bits back: at the bound, for many small pictures.

    DATA: a folder of images of any sizes, an .npz with x uint8 (N,H,W,3), or `sample`.
    """
    check_outputs([json_file], [Path(data), ckpt], [out])
    source = load_checkpoint(ckpt)
    pictures, names = _pictures(data, limit)
    with progress_bar("packing", "call") as bar:
        bar.reset(len(pictures) * steps)
        packed = pack(source, pictures, names, steps, bar.update)
    write_bytes(out, packed.data)
    dims = sum(picture.numel() for picture in pictures)
    bpd = np.array([b / p.numel() for b, p in zip(packed.picture_bits, pictures, strict=True)])
    report = {
        "file_bytes": len(packed.data),
        "images": len(pictures),
        "dims": dims,
        "steps": steps,
        "bpd": 8 * len(packed.data) / dims,
        "picture_bpd": float(bpd.mean()),
        "picture_bpd_sem": float(bpd.std(ddof=1) / len(bpd) ** 0.5) if len(bpd) > 1 else None,
        "initial_bits": packed.initial_bits,
        "initial_bpd": packed.initial_bits / dims,
    }
    if json_file is not None:
        write_json(json_file, report)
    if str(out) == "-":
        return
    click.echo(
        f"{data} -> {out}: {len(pictures)} pictures, {report['file_bytes']} bytes, "
        f"{report['bpd']:.3f} bits/dim, of which {report['initial_bpd']:.3f} initial bits"
    )


def _pictures(data: str, limit: int | None) -> tuple[list[Tensor], list[str]]:
    """Pictures (3,H,W) and, from a folder, their names."""
    if data in NAMED or not Path(data).is_dir():
        return list(load_batch(data, limit)), []
    paths = list_images(Path(data))[:limit]
    pictures = [torch.from_numpy(read_image(path).copy()).permute(2, 0, 1) for path in paths]
    return [picture.contiguous() for picture in pictures], [path.name for path in paths]


@click.command("unpack")
@click.argument("archive", type=FilePath)
@click.option(
    "-o",
    "--out",
    type=FilePath,
    required=True,
    help="Folder to write PNGs into, or an .npz for pictures of one size.",
)
@ckpt_option
def unpack_command(archive: Path, out: Path, ckpt: Path | None) -> None:
    """Unpack an archive: the pictures as they were, as PNGs or in one .npz."""
    as_npz = out.suffix == ".npz"
    parts = read_archive(read_bytes(archive))
    if as_npz:
        check_outputs([out], [archive, ckpt])
    else:
        make_folder(out)
    if as_npz and len({(kind.width, kind.height) for kind in parts.kinds}) > 1:
        raise ConfigError(f"{out}: the pictures are of several sizes; give a folder instead")
    source = load_checkpoint(ckpt)
    with progress_bar("unpacking", "call") as bar:
        bar.reset(len(parts.kinds) * parts.steps)
        pictures = [p.permute(1, 2, 0).numpy() for p in unpack(source, parts, bar.update)]
    if as_npz:
        _write_npz(out, np.stack(pictures))
    else:
        for name, kind, picture in zip(_names(parts), parts.kinds, pictures, strict=True):
            write_image(out / name, picture[..., 0] if kind.grey else picture)
    click.echo(f"{archive} -> {out}: {len(pictures)} pictures")


def _names(parts: Archive) -> list[str]:
    """What the pictures' files are called: PNGs whatever they were before, no two alike (case
    does not tell them apart everywhere)."""
    count = len(parts.kinds)
    if not parts.names:
        return [f"{i:0{len(str(count - 1))}d}.png" for i in range(count)]
    names, taken = list(parts.names), set[str]()
    for i in sorted(range(count), key=lambda i: not _is_png(names[i])):
        names[i] = next(name for name in _candidates(names[i], i) if name.casefold() not in taken)
        taken.add(names[i].casefold())
    return names


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png")


def _candidates(name: str, number: int) -> Iterator[str]:
    """Names of PNGs for the picture of this name and number, none longer than a name may be."""
    if _is_png(name):
        yield name
    if len(name.encode()) + len(".png") <= MAX_NAME_BYTES:
        yield name + ".png"
    for attempt in itertools.count():
        end = f"~{number}.png" if not attempt else f"~{number}.{attempt}.png"
        yield name.encode()[: MAX_NAME_BYTES - len(end)].decode(errors="ignore") + end


def _write_npz(path: Path, x: np.ndarray) -> None:
    with atomic(path) as partial, partial.open("wb") as file:
        np.savez(file, x=x)
