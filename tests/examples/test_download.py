"""The downloader, against a server on this machine."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from examples import download
from examples.data import DataError
from examples.download import Remote

CONTENT = bytes(range(256)) * 40
HASH = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; can ignore ranges, stop early, or leave out the length."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = {"/file.bin": CONTENT}, []
        self.ranges, self.cut, self.length = True, None, True


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        if self.path not in server.files:
            self.send_error(404)
            return
        body, start = server.files[self.path], 0
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : server.cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(server, name="file.bin", sha256=HASH, size=None):
    return Remote(f"http://127.0.0.1:{server.server_port}/{name}", sha256, size)


def fetch(server, folder, **options):
    return download.fetch(remote(server, **options), folder, Console(stderr=True))


def test_a_file_is_fetched_once(server, tmp_path):
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_what_was_cut_off_goes_on_where_it_stopped(server, tmp_path, ranges, size):
    server.ranges, server.cut = ranges, 1000
    with pytest.raises(DataError, match="run the command again to go on"):
        fetch(server, tmp_path, size=size)
    assert (tmp_path / "file.bin.part").stat().st_size == 1000
    server.cut = None
    assert fetch(server, tmp_path, size=size).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000-"]


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT  # the server answers 416
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")
    assert fetch(server, tmp_path, size=len(CONTENT)).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_part_of_something_else_is_found_out_and_removed(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match=f"expected SHA-256 {HASH}, got .*removed what came"):
        fetch(server, tmp_path)
    assert not list(tmp_path.iterdir())
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_file_that_is_not_the_published_one_is_refused(server, tmp_path):
    server.files["/file.bin"] = CONTENT[:-1] + b"!"
    with pytest.raises(DataError, match=r"file\.bin: expected SHA-256"):
        fetch(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_page_of_another_size_is_refused_at_once(server, tmp_path):
    server.files["/file.bin"] = b"<html>moved</html>"
    with pytest.raises(DataError, match="expected 10240 bytes, the server offers 18"):
        fetch(server, tmp_path, size=len(CONTENT))


def test_a_server_that_does_not_tell_the_length_is_judged_by_size_and_hash(server, tmp_path):
    server.length, server.cut = False, 1000
    with pytest.raises(DataError, match="expected 10240 bytes, got 1000"):
        fetch(server, tmp_path, size=len(CONTENT))
    server.cut = None
    assert fetch(server, tmp_path, size=len(CONTENT)).read_bytes() == CONTENT


def test_another_file_of_that_name_is_not_overwritten(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match="found another file: remove it"):
        fetch(server, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"


def test_what_is_not_there_and_who_does_not_answer_is_one_clear_line(server, tmp_path):
    with pytest.raises(DataError, match="none: expected the file, got 404"):
        fetch(server, tmp_path, name="none")
    with pytest.raises(DataError, match="could not be received"):
        download.fetch(Remote("http://127.0.0.1:9/f", HASH), tmp_path, Console(stderr=True))


def tar_of(members, compression="gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


ARCHIVES = {"set.tar.gz": tar_of, "set.tar.bz2": lambda m: tar_of(m, "bz2"), "set.zip": zip_of}


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_command_fetches_verifies_and_unpacks(server, tmp_path, monkeypatch, capsys, name):
    archive = ARCHIVES[name]({"inner/a.txt": b"A", "inner/b.txt": b"B"})
    server.files[f"/{name}"] = archive
    files = (remote(server, name, hashlib.sha256(archive).hexdigest()),)
    monkeypatch.setitem(download.SETS, "test_set", files)
    for _ in range(2):  # a second time changes nothing
        assert download.main(["test_set", "--data-dir", str(tmp_path / "d")]) == 0
        found = sorted(str(p.relative_to(tmp_path / "d")) for p in (tmp_path / "d").rglob("*.txt"))
        assert found == ["inner/a.txt", "inner/b.txt"]
    assert f"--data-dir {tmp_path / 'd'}" in capsys.readouterr().out
    assert not [p for p in (tmp_path / "d").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("member", ["../outside.txt", "inner/../../outside.txt"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path, name, member):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / name).write_bytes(ARCHIVES[name]({"ok.txt": b"ok", member: b"out"}))
    with pytest.raises(DataError):
        download.unpack(folder / name, folder)
    assert not list(tmp_path.rglob("outside.txt"))
    assert not list(folder.glob("ok.txt"))


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_truncated_archive_is_named_and_leaves_nothing(tmp_path, name):
    content = ARCHIVES[name]({"a.txt": bytes(range(256)) * 100})
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{name}: expected a sound archive"):
        download.unpack(tmp_path / name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_imagenet_is_refused_with_the_way_to_get_it(tmp_path, capsys):
    assert download.main(["imagenet", "--data-dir", str(tmp_path)]) == 1
    assert "register at https://image-net.org" in capsys.readouterr().err
    assert download.main(["nonsense", "--data-dir", str(tmp_path)]) == 1
    assert "nonsense: expected one of mnist, fashion_mnist, cifar10" in capsys.readouterr().err


def test_every_hash_is_a_sha256():
    for files in download.SETS.values():
        for file in files:
            assert len(file.sha256) == 64
            assert int(file.sha256, 16) >= 0
