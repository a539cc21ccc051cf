"""Output files: written under a temporary name, then renamed; nothing is left half-written."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ddpm_codec.errors import ConfigError, DataError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on failure.

    A symbolic link stays one: what it points to is replaced. A device or a pipe stays what it is:
    the whole file is written into it. A file that is replaced hands on its mode. Raises DataError
    when `path` can't be written.
    """
    check_writable(path)
    target = path.resolve()
    special = _is_special(target)
    try:
        handle, name = tempfile.mkstemp(".partial", ".", None if special else target.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            if special:
                with partial.open("rb") as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            else:
                partial.chmod(_mode(target))
                partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _is_special(path: Path) -> bool:
    """Whether something is there that is neither a file nor a folder."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises DataError when that can't be done."""
    with atomic(path) as partial:
        partial.write_text(text)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Raises DataError when that can't be done."""
    with atomic(path) as partial:
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def check_writable(path: Path) -> None:
    """Raise DataError unless a file can be created at `path`, ConfigError for -: to ask before
    long work."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; the name of a file was expected")
    if str(path) == "-":
        raise ConfigError("-: only streams and archives go to standard output; name a file")
    try:
        target = path.resolve()
        if not _is_special(target):
            _check_folder(target.parent)
        elif not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise _unwritable(path, error) from error


def check_outputs(
    outputs: Iterable[Path | None],
    inputs: Iterable[Path | None] = (),
    streams: Iterable[Path] = (),
) -> None:
    """Raise DataError unless a file can be created at each of `outputs` and `streams`, ConfigError
    where one of them would replace another or a file of `inputs`. None is none; of `streams`, - is
    standard output."""
    taken = {path.resolve(): "it is read" for path in inputs if path is not None and path.is_file()}
    for path in [*outputs, *(stream for stream in streams if str(stream) != "-")]:
        if path is None:
            continue
        check_writable(path)
        if _is_special(path):
            continue
        if path.resolve() in taken:
            raise ConfigError(f"{path}: {taken[path.resolve()]} as well; choose another name")
        taken[path.resolve()] = "another output goes there"


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises DataError when that can't be done."""
    if path.is_file():
        raise DataError(f"{path}: is a file; the name of a folder was expected")
    try:
        path.mkdir(parents=True, exist_ok=True)
        _check_folder(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _check_folder(folder: Path) -> None:
    """OSError unless files can be made in it."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def _mode(target: Path) -> int:
    """That of the file that is there, else of a plainly created one."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _unwritable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error)
    return DataError(f"{path}: can't be written ({reason.lower()})")
