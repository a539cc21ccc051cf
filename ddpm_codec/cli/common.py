"""What the commands share: options, progress bars, loading, JSON."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_codec import checkpoint
from ddpm_codec.checkpoint import Checkpoint
from ddpm_codec.crops import PhotoCrops
from ddpm_codec.errors import CheckpointError, DataError
from ddpm_codec.files import atomic, write_text

Command = TypeVar("Command", bound=Callable[..., Any])

FilePath = click.Path(path_type=Path)


class Timesteps(click.ParamType):  # type: ignore[type-arg]
    """A positive number or `all`."""

    name = "K|all"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["all"]:
        if value == "all":
            return "all"
        return int(click.IntRange(1).convert(value, param, ctx))


def ckpt_option(command: Command) -> Command:
    """--ckpt, the bundled checkpoint by default."""
    return click.option("--ckpt", type=FilePath, help="Checkpoint [default: the bundled one].")(
        command
    )


class Finite(click.FloatRange):
    """A number within bounds, neither NaN nor infinite."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def data_options(command: Command) -> Command:
    """--data, --limit and --crop: which images."""
    for option in (
        click.option("--crop", type=click.IntRange(1), help="Cut the centred N x N of each image."),
        click.option("--limit", type=click.IntRange(1), help="Use only the first N images."),
        click.option(
            "--data",
            default="sample",
            show_default=True,
            help="A folder of images, an .npz with x uint8 (N,H,W,3), `sample`, `cifar10` (test "
            "pictures) or `cifar10-train`.",
        ),
    ):
        command = option(command)
    return command


def seed_option(command: Command) -> Command:
    """--seed of the private random numbers."""
    return click.option(
        "--seed",
        type=click.IntRange(0, (1 << 63) - 1),
        default=0,
        show_default=True,
        help="Seed of the random numbers.",
    )(command)


def device_option(command: Command) -> Command:
    """--device of the network."""
    return click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        show_default=True,
        help="Where the network runs; under torchrun, cuda is the local rank's GPU.",
    )(command)


def draw_crops(folder: Path, side: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,3,side,side) uint8 random crops of a folder's photographs; names what it left out."""
    photographs = PhotoCrops(folder, side)
    crops = photographs.draw(count, generator)
    echo_skipped(photographs.skipped)
    return crops


def echo_skipped(reasons: Sequence[str]) -> None:
    """Name the pictures that were left out, on standard error."""
    for reason in reasons:
        click.echo(f"skipped {reason}", err=True)


def load_checkpoint(ckpt: Path | None, training: bool = False) -> Checkpoint:
    """The checkpoint at `ckpt`, or the one in the package."""
    if ckpt is None:
        return checkpoint.load_bundled()
    source = checkpoint.load(ckpt, training)
    if source.config.unet.image_channels != 3:
        raise CheckpointError(f"{ckpt}: a model of {source.config.unet.image_channels}-channel "
                              "pictures; those that are read here have 3")  # fmt: skip
    return source


@contextmanager
def progress_bar(title: str, unit: str, hidden: bool = False) -> Iterator["tqdm[Any]"]:
    """A bar on standard error, on a terminal only."""
    with tqdm(
        desc=title, unit=unit, disable=hidden or None, leave=False, dynamic_ncols=True
    ) as bar:
        yield bar


def reset_total(bar: "tqdm[Any]") -> Callable[[int], None]:
    """A callback that tells `bar` how much there is to do."""

    def on_start(total: int) -> None:
        bar.reset(total)

    return on_start


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically; NaN is no JSON and an error here."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a stream to a file, atomically, or to standard output for `-`."""
    if str(path) == "-":
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # whoever read it has enough
            raise
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DataError(f"standard output: can't be written ({reason})") from error
        return
    with atomic(path) as partial:
        partial.write_bytes(data)


def read_bytes(path: Path) -> bytes:
    """A whole file, or standard input for `-`. DataError when it can't be read."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from error
