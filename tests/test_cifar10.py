"""CIFAR-10: the reader on a small archive in its format, the download from a local server."""

import contextlib
import hashlib
import http.server
import io
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ddpm_codec.cifar10 import Archive, cache_folder, load_cifar10
from ddpm_codec.crops import ArrayCrops
from ddpm_codec.data import load_batch
from ddpm_codec.errors import DataError

RECORDS = 3
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def pictures(seed):
    return np.random.default_rng(seed).integers(0, 256, (RECORDS, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def packed():
    """An archive: a label, then the red, the green and the blue plane, row by row."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for seed, name in enumerate(NAMES):
            records = b"".join(
                bytes([7]) + picture.transpose(2, 0, 1).tobytes() for picture in pictures(seed)
            )
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(records)
            tar.addfile(info, io.BytesIO(records))
    return out.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    content, ranges, asked = b"", True, None

    def do_GET(self):
        first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        type(self).asked.append(first)
        start = first if self.ranges else 0
        self.send_response(206 if self.ranges else 200)
        self.end_headers()
        self.wfile.write(self.content[start:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(packed):
    handler = type("Handler", (Server,), {"content": packed, "asked": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
    digest = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    yield Archive(url, digest, len(packed), RECORDS), handler
    server.shutdown()
    server.server_close()


def test_download_then_cache(served, tmp_path):
    archive, handler = served
    test = load_cifar10(False, None, archive, tmp_path / "new")
    np.testing.assert_array_equal(test, pictures(5))
    train = load_cifar10(True, None, archive, tmp_path / "new")
    np.testing.assert_array_equal(train, np.concatenate([pictures(i) for i in range(5)]))
    assert len(load_cifar10(True, 4, archive, tmp_path / "new")) == 4
    assert handler.asked == [0]


def test_a_connection_that_ends_early_leaves_what_came(served, packed, tmp_path):
    """It once counted as whole, failed the MD5 and was thrown away."""
    archive, handler = served
    handler.content = packed[:1000]
    with pytest.raises(DataError, match="ended early"):
        load_cifar10(False, None, archive, tmp_path)
    handler.content = packed
    np.testing.assert_array_equal(load_cifar10(False, None, archive, tmp_path), pictures(5))
    assert handler.asked == [0, 1000]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(served, packed, tmp_path, ranges):
    archive, handler = served
    handler.ranges = ranges
    (tmp_path / f"{archive.name}.partial").write_bytes(packed[:1000])
    np.testing.assert_array_equal(load_cifar10(False, None, archive, tmp_path), pictures(5))
    assert handler.asked == [1000]
    assert [p.name for p in tmp_path.iterdir()] == [archive.name]


def test_processes_that_want_it_at_once_download_it_once(served, tmp_path):
    """As under torchrun with an empty cache: they once appended to the same partial file. Threads
    stand for processes here: the lock is the opened folder's."""
    archive, handler = served
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(load_cifar10, False, None, archive, tmp_path / "new") for _ in range(4)]
        for job in jobs:
            np.testing.assert_array_equal(job.result(), pictures(5))
    assert handler.asked == [0]


def test_another_content_is_refused(served, tmp_path):
    archive, handler = served
    handler.content = handler.content[:-1] + b"x"
    with pytest.raises(DataError, match="MD5"):
        load_cifar10(False, None, archive, tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_than_the_archive_is_not_taken(served, tmp_path):
    archive, handler = served
    handler.content = handler.content + bytes(1 << 20)
    with pytest.raises(DataError, match="longer"):
        load_cifar10(False, None, archive, tmp_path)


def test_offline_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    archive = Archive(url="http://127.0.0.1:1/cifar-10-binary.tar.gz")
    with pytest.raises(DataError, match="connect, or put") as caught:
        load_cifar10(False, None, archive, None)
    assert "\n" not in str(caught.value)
    assert str(cache_folder()) in str(caught.value)


def test_a_damaged_archive_is_said(tmp_path, packed):
    path = tmp_path / Archive().name
    path.write_bytes(packed[:500])
    with pytest.raises(DataError, match="delete it"):
        load_cifar10(False, cache=tmp_path)
    path.write_bytes(packed)
    with pytest.raises(DataError, match="is not 10000 pictures"):
        load_cifar10(False, cache=tmp_path)


def test_names_of_the_data_sets(tmp_path, monkeypatch, packed):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("ddpm_codec.cifar10.Archive", lambda: Archive(records=RECORDS))
    (tmp_path / "ddpm-codec").mkdir()
    (tmp_path / "ddpm-codec" / Archive().name).write_bytes(packed)
    test = load_batch("cifar10", limit=2)
    np.testing.assert_array_equal(test.permute(0, 2, 3, 1).numpy(), pictures(5)[:2])
    assert len(load_batch("cifar10-train")) == 15


def test_crops_of_an_array_are_its_pictures_or_their_mirrors():
    import torch

    x = pictures(0)
    drawn = ArrayCrops(x, 32).draw(40, torch.Generator().manual_seed(0))
    allowed = [p.tobytes() for p in x] + [np.ascontiguousarray(p[:, ::-1]).tobytes() for p in x]
    seen = {p.permute(1, 2, 0).contiguous().numpy().tobytes() for p in drawn}
    assert seen <= set(allowed)
    assert len(seen) == 6
    with pytest.raises(DataError, match="crop"):
        ArrayCrops(x, 33)


def test_damage_anywhere_is_said_or_does_no_harm(tmp_path, packed):
    """Some of it is a zlib.error, which is no OSError and was a traceback. Without a checksum of
    its own inside, gzip notices little of what it was not asked to read to its end."""
    archive = Archive(records=RECORDS)
    for at in range(20, len(packed), 97):
        damaged = bytes(255 - byte for byte in packed[at : at + 2])
        (tmp_path / archive.name).write_bytes(packed[:at] + damaged + packed[at + 2 :])
        with contextlib.suppress(DataError):
            load_cifar10(False, None, archive, tmp_path)
