"""CIFAR-10 (Krizhevsky 2009): downloaded once, checked, kept in the user's cache folder."""

import hashlib
import http.client
import os
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ddpm_codec.errors import DataError

if sys.platform != "win32":
    import fcntl

Pixels = npt.NDArray[np.uint8]

_SIDE = 32
_RECORD_BYTES = 1 + 3 * _SIDE**2
_PIECE_BYTES = 1 << 16
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Archive:
    """Where the archive of the binary version comes from, and what it must be."""

    url: str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    md5: str = "c32a1d4ab5d03f1284b67883e8d87530"
    bytes: int = 170_052_171
    records: int = 10_000

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rsplit("/", 1)[1]


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/ddpm-codec, by default ~/.cache/ddpm-codec."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ddpm-codec"


def load_cifar10(
    train: bool, limit: int | None = None, archive: Archive | None = None, cache: Path | None = None
) -> Pixels:
    """(N,32,32,3) uint8: the 50,000 training or 10,000 test pictures, in the files' order.

    Downloads the archive where the cache folder does not have it, going on where an earlier
    download stopped. DataError when that fails, or where the archive is damaged.
    """
    archive, cache = archive or Archive(), cache or cache_folder()
    path = cache / archive.name
    if not path.exists():
        with _in_turn(cache):
            if not path.exists():
                _download(archive, path)
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    batches: list[Pixels] = []
    for name in names:
        if limit is None or sum(map(len, batches)) < limit:
            batches.append(_read_batch(path, name, archive.records))
    return np.concatenate(batches)[:limit]


def _read_batch(path: Path, name: str, records: int) -> Pixels:
    try:
        with tarfile.open(path, "r:gz") as tar:
            member = tar.extractfile(f"cifar-10-batches-bin/{name}.bin")
            raw = b"" if member is None else member.read(records * _RECORD_BYTES + 1)
    except (OSError, KeyError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error}): delete it, to download it again") from error
    if len(raw) != records * _RECORD_BYTES:
        raise DataError(f"{path}: its {name} is not {records} pictures: delete it")
    planes = np.frombuffer(raw, np.uint8).reshape(records, _RECORD_BYTES)[:, 1:]
    return np.ascontiguousarray(planes.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


@contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """One process at a time, of those on one machine that share a folder (torchrun's); made where
    it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            yield
            return
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{folder}: {(error.strerror or str(error)).lower()}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, too
        yield
    finally:
        os.close(lock)


def _download(archive: Archive, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        _fetch(archive, partial)
        found = _md5(partial)
    except (http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(
            f"cifar10: can't be downloaded ({reason}); connect, or put {archive.name} into "
            f"{path.parent}"
        ) from error
    if found != archive.md5:
        partial.unlink()
        raise DataError(f"cifar10: {archive.url} has MD5 {found}, {archive.md5} was expected")
    partial.replace(path)


def _fetch(archive: Archive, partial: Path) -> None:
    """Append to `partial` what it lacks."""
    have = partial.stat().st_size if partial.exists() else 0
    if have >= archive.bytes:
        return
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as reply:
        goes_on = reply.status == 206
        with (
            partial.open("ab" if goes_on else "wb") as file,
            tqdm(desc="cifar10", unit="B", unit_scale=True, total=archive.bytes, disable=None,
                 initial=have if goes_on else 0, leave=False) as bar,
        ):  # fmt: skip
            while piece := reply.read(_PIECE_BYTES):
                if file.tell() + len(piece) > archive.bytes:
                    raise OSError("longer than expected")
                file.write(piece)
                bar.update(len(piece))
            if file.tell() < archive.bytes:
                raise OSError("the connection ended early; try again to go on")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
