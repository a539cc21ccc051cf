"""Output files: whole or not at all, and nothing else is touched."""

import os
import threading

import pytest
from safetensors import SafetensorError

from ddpm_codec import files
from ddpm_codec.errors import DataError
from ddpm_codec.files import atomic, check_writable, make_folder, write_tensors, write_text


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")

    def fail_halfway():
        with atomic(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "before"
    write_text(path, "after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_stays_private(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    path.chmod(0o600)
    write_text(path, "after")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_called_partial_is_left_alone(tmp_path):
    """The temporary name was once NAME.partial, whoever had that."""
    (tmp_path / "a.partial").write_text("somebody's")
    write_text(tmp_path / "a", "x")
    assert (tmp_path / "a.partial").read_text() == "somebody's"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "file").read_text() == "x"


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    """As /dev/null and /dev/stdout do, which a rename would replace for everybody."""
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "x" * 1000)
    reader.join(timeout=60)
    assert heard == ["x" * 1000]
    assert pipe.is_fifo()
    check_writable(pipe)


def test_a_link_to_itself_is_said(tmp_path):
    """Resolving one is a RuntimeError, not an OSError, which was a traceback."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for write in (lambda path: write_text(path, "x"), check_writable):
        with pytest.raises(DataError, match="loop: can't be written"):
            write(tmp_path / "loop")


def test_a_full_disk_is_said_by_whatever_writes(tmp_path, monkeypatch):
    """safetensors has an exception of its own for what the system says: a traceback once."""

    def full(tensors, path, metadata):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(DataError, match="no space left on device"):
        write_tensors(tmp_path / "a", {})
    assert not list(tmp_path.iterdir())


def test_names_as_long_as_the_system_allows(tmp_path):
    write_text(tmp_path / ("n" * 255), "x")
    assert (tmp_path / ("n" * 255)).read_text() == "x"


def test_a_folder_with_anything_in_it_is_a_folder(tmp_path):
    (tmp_path / "out" / "probe").mkdir(parents=True)
    make_folder(tmp_path / "out")
    write_text(tmp_path / "f", "")
    with pytest.raises(DataError, match="is a file"):
        make_folder(tmp_path / "f")
