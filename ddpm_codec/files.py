"""Output files: written under a temporary name, then renamed; nothing is left half-written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_codec.errors import DataError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on failure.

    Raises DataError when `path` can't be written.
    """
    check_writable(path)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        _follow_umask(partial)
        partial.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises DataError when that can't be done."""
    with atomic(path) as partial:
        partial.write_text(text)


def check_writable(path: Path) -> None:
    """Raise DataError unless a file can be created at `path`: to ask before long work."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; the name of a file was expected")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises DataError when that can't be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    check_writable(path / "probe")


def _follow_umask(path: Path) -> None:
    """The mode of a plainly created file: some writers choose a narrower one."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: can't be written ({(error.strerror or str(error)).lower()})")
