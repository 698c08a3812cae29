"""The downloader, against a server on this machine."""

import contextlib
import gc
import hashlib
import io
import os
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
    """Serves `files`; can ignore ranges, stop early, leave out the length, or answer as told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = {"/file.bin": CONTENT}, []
        self.ranges, self.cut, self.length = True, None, True
        self.answer, self.headers = None, {}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        if server.answer:
            self.send_response(*server.answer)
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            return
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
        with contextlib.suppress(ConnectionError):  # who has enough hangs up
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


@pytest.mark.parametrize("begun", [0, 1000])
def test_a_body_never_grows_past_the_known_size(server, tmp_path, monkeypatch, begun):
    server.length = False
    server.files["/file.bin"] = CONTENT + bytes(1 << 22)
    part, copied = tmp_path / "file.bin.part", []
    if begun:
        part.write_bytes(CONTENT[:begun])
    unlink = download.Path.unlink
    monkeypatch.setattr(
        "pathlib.Path.unlink", lambda path: (copied.append(path.stat().st_size), unlink(path))
    )
    with pytest.raises(DataError, match="at most 10240 bytes, the server sends more: removed"):
        fetch(server, tmp_path, size=len(CONTENT))
    monkeypatch.setattr(download, "_LARGEST_FILE", 5000)
    with pytest.raises(DataError, match="at most 5000 bytes, the server sends more: removed"):
        fetch(server, tmp_path)
    assert copied == [len(CONTENT), 5000]
    server.length = True
    with pytest.raises(DataError, match="at most 5000 bytes, the server offers 4204544"):
        fetch(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_longer_than_the_file_is_begun_anew(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"x")
    assert fetch(server, tmp_path, size=len(CONTENT)).read_bytes() == CONTENT
    assert server.requests == [None]


def test_no_range_without_a_part_is_one_clear_line(server, tmp_path):
    server.answer = (416,)
    with pytest.raises(DataError, match=r"file\.bin: expected the file, got 416"):
        fetch(server, tmp_path)


def test_a_part_that_is_a_link_or_a_pipe_is_not_written_to(server, tmp_path):
    part, mine = tmp_path / "file.bin.part", tmp_path / "mine"
    mine.write_bytes(CONTENT[:1000])
    for target in (mine, tmp_path / "nowhere"):
        part.symlink_to(target)
        with pytest.raises(DataError, match=r"file\.bin\.part: .*a link or another.*remove it"):
            fetch(server, tmp_path)
        with pytest.raises(OSError, match="symbolic"):  # where it comes in between
            download._open_part(part, anew=True)
        part.unlink()
    os.mkfifo(part)
    with pytest.raises(DataError, match=r"file\.bin\.part: .*a link or another.*remove it"):
        fetch(server, tmp_path)
    assert mine.read_bytes() == CONTENT[:1000]
    assert not (tmp_path / "nowhere").exists()
    assert server.requests == []


def test_what_takes_the_place_of_the_file_is_named(server, tmp_path):
    os.mkfifo(tmp_path / "file.bin")
    with pytest.raises(DataError, match=r"file\.bin: expected a file to verify, found a pipe"):
        fetch(server, tmp_path)
    (tmp_path / "file.bin").unlink()
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(DataError, match=r"file\.bin: expected a file to verify, found a folder"):
        fetch(server, tmp_path)


ANSWERS = {
    "a reason to clear the screen": ((404, "\x1b[2J" + "no " * 200), {}),
    "an address that is none": ((302,), {"Location": "http://[/"}),
    "a host that is none": ((302,), {"Location": f"http://{'x' * 70}.{'y' * 300}/"}),
    "a file of this machine": ((302,), {"Location": "file:///etc/hostname"}),
    "itself": ((302,), {"Location": "/file.bin"}),
    "a length that is none": ((200,), {"Content-Length": "\xb2"}),
    "a length of 5,000 digits": ((200,), {"Content-Length": "9" * 5000}),
    "a negative length": ((200,), {"Content-Length": "-1"}),
    "too many headers": ((200,), {f"X-{number}": "x" for number in range(200)}),
    "chunks that are none": ((200,), {"Transfer-Encoding": "chunked"}),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # urllib's, of redirections that fail
@pytest.mark.parametrize(("answer", "headers"), ANSWERS.values(), ids=ANSWERS)
def test_every_error_is_one_line(server, tmp_path, answer, headers):
    server.answer, server.headers = answer, headers
    with pytest.raises(DataError) as error:
        fetch(server, tmp_path, size=len(CONTENT))
    assert str(error.value).isprintable()
    assert f"{server.server_port}/file.bin: " in str(error.value)
    assert len(str(error.value)) < 400
    del error
    gc.collect()


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


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_holds_too_much_is_refused(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(ARCHIVES[name]({"a": bytes(600), "b": bytes(600)}))
    monkeypatch.setattr(download, "_LARGEST_SET", 1000)
    with pytest.raises(DataError, match=f"{name}: expected at most 1000 bytes in it, found more"):
        download.unpack(tmp_path / name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_archive_is_not_unpacked_through_a_link(tmp_path):
    (tmp_path / "set.zip").write_bytes(zip_of({"a": b"A"}))
    (tmp_path / "mine").mkdir()
    (tmp_path / ".set.zip.unpacking").symlink_to(tmp_path / "mine")
    with pytest.raises(DataError, match=r"set\.zip: expected a sound archive \(File exists\)"):
        download.unpack(tmp_path / "set.zip", tmp_path)
    assert not list((tmp_path / "mine").iterdir())


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
