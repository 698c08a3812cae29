"""Fetches the public data sets: `python -m examples.download NAME [--data-dir DIR]`.

A file counts only when its hash is right. What was cut off goes on where it stopped, where the
server allows that. Archives are unpacked without letting a member leave the folder.
"""

import argparse
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from examples.data.base import DataError, in_words, open_file
from examples.data.imagenet import HOW_TO_GET_IT

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
_LARGEST_FILE = 2**30
"""Bytes of a file whose size is not known."""
_LARGEST_SET = 2**34
"""Bytes of all that an archive holds; LJSpeech has 4 billion."""


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Attributes:
        url: of the file; its last part is the file's name.
        sha256: of the file, as published.
        size: bytes; where it is known, a file of another size is refused before it is hashed.
    """

    url: str
    sha256: str
    size: int | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_CIFAR = "https://www.cs.toronto.edu/~kriz"

# The hashes are those of TensorFlow Datasets (MNIST, Fashion-MNIST, LJSpeech), of Keras (CIFAR) and
# of several public loaders (WikiText); those of CIFAR agree with the authors' MD5 sums where both
# have been computed of one file.
SETS: dict[str, tuple[Remote, ...]] = {
    "mnist": (
        Remote(
            f"{_MNIST}/train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            9_912_422,
        ),
        Remote(
            f"{_MNIST}/train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            28_881,
        ),
        Remote(
            f"{_MNIST}/t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            1_648_877,
        ),
        Remote(
            f"{_MNIST}/t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            4_542,
        ),
    ),
    "fashion_mnist": (
        Remote(
            f"{_FASHION}/train-images-idx3-ubyte.gz",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            26_421_880,
        ),
        Remote(
            f"{_FASHION}/train-labels-idx1-ubyte.gz",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            29_515,
        ),
        Remote(
            f"{_FASHION}/t10k-images-idx3-ubyte.gz",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            4_422_102,
        ),
        Remote(
            f"{_FASHION}/t10k-labels-idx1-ubyte.gz",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            5_148,
        ),
    ),
    "cifar10": (
        Remote(
            f"{_CIFAR}/cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            170_498_071,
        ),
    ),
    "cifar100": (
        Remote(
            f"{_CIFAR}/cifar-100-python.tar.gz",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            169_001_437,
        ),
    ),
    "wikitext103": (
        Remote(
            "https://wikitext.smerity.com/wikitext-103-v1.zip",
            "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        ),
    ),
    "ljspeech": (
        Remote(
            "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
            "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
            2_748_572_632,
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 if a set could not be had, with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.download", description="Fetch a public data set."
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(SETS))
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where to put it (default: data/NAME); give the same to examples.train",
    )
    options = parser.parse_args(arguments)
    folder = options.data_dir or Path("data") / options.name
    try:
        fetch_set(options.name, folder, Console(stderr=True))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.name} is in {folder}: give --data-dir {folder}")
    return 0


def fetch_set(name: str, folder: Path, console: Console) -> None:
    """Fetches every file of a set, and unpacks archives."""
    if name == "imagenet":
        raise DataError(f"imagenet: {HOW_TO_GET_IT}")
    if name not in SETS:
        raise DataError(f"{name}: expected one of {', '.join(SETS)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: expected a folder to write to ({in_words(error)})") from error
    for remote in SETS[name]:
        path = fetch(remote, folder, console)
        if path.name.endswith((".zip", ".tar.gz", ".tar.bz2")):
            unpack(path, folder)


def fetch(remote: Remote, folder: Path, console: Console) -> Path:
    """The file, from disk if it is there and right, else from the network.

    Raises:
        DataError: the server cannot be reached, stops early, or sends something else; what came of
            the right file is kept as `NAME.part`, what is wrong is removed.
    """
    path, part = folder / remote.name, folder / f"{remote.name}.part"
    if os.path.exists(path):
        if sha256(path) == remote.sha256:
            return path
        raise DataError(
            f"{path}: expected SHA-256 {remote.sha256}, found another file: remove it to fetch "
            "the right one"
        )
    _receive(remote, part, console)
    found = sha256(part)
    try:
        if found == remote.sha256:
            return part.rename(path)
        part.unlink()
    except OSError as error:
        raise DataError(f"{path}: expected a file to write to ({in_words(error)})") from error
    raise DataError(
        f"{remote.url}: expected SHA-256 {remote.sha256}, got {found}: removed what came"
    )


def _received(part: Path) -> int:
    """Bytes that came in an earlier run.

    Raises:
        DataError: what is there is not a file of its own; writing would go elsewhere, or wait.
    """
    if not os.path.lexists(part):
        return 0
    if part.is_symlink() or not part.is_file():
        raise DataError(
            f"{part}: expected a file that was begun, found a link or another kind of file: "
            "remove it to begin anew"
        )
    return part.stat().st_size


def _receive(remote: Remote, part: Path, console: Console) -> None:
    """Appends to `part` what is missing of it; begins anew where the server has no ranges."""
    have = _received(part)
    if have and have == remote.size:
        return
    if have > (remote.size or _LARGEST_FILE):  # it cannot be the beginning of the file
        have = 0
    request = urllib.request.Request(remote.url, headers={"User-Agent": "ramda_jax examples"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            resumed = response.status == 206 and _starts_at(response, have)
            expected = _expected_size(remote, response, have if resumed else 0)
            with _open_part(part, anew=not resumed) as file:
                have = have if resumed else 0
                sent = _copy(response, file, have, expected, remote.name, console)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing is left to send: the hash will tell
            return
        raise DataError(
            f"{remote.url}: expected the file, got {error.code} {in_words(Exception(error.reason))}"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        # ValueError: an address that the server sends on to, or a length, that is none
        raise DataError(
            f"{remote.url}: could not be received in full ({in_words(error)}); "
            "run the command again to go on"
        ) from error
    if not sent:
        part.unlink()
        raise DataError(
            f"{remote.url}: expected at most {expected or _LARGEST_FILE} bytes, the server sends "
            "more: removed what came"
        )
    size = part.stat().st_size
    if expected is not None and size < expected:
        raise DataError(
            f"{remote.url}: expected {expected} bytes, got {size}: run the command again to go on"
        )


def _open_part(part: Path, anew: bool) -> BinaryIO:
    """The file to append to, or to begin; a link that took its place since is not followed."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if anew else os.O_APPEND)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(part, flags, 0o666), "wb")


def _starts_at(response: Any, position: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {position}-")


def _expected_size(remote: Remote, response: Any, have: int) -> int | None:
    """Bytes of the whole file: as published, else as the server says."""
    length = str(response.headers.get("Content-Length", ""))
    told = have + int(length) if length.isdecimal() and len(length) < 20 else None
    if remote.size is not None and told is not None and told != remote.size:
        raise DataError(f"{remote.url}: expected {remote.size} bytes, the server offers {told}")
    if remote.size is None and told is not None and told > _LARGEST_FILE:
        raise DataError(
            f"{remote.url}: expected at most {_LARGEST_FILE} bytes, the server offers {told}"
        )
    return remote.size if remote.size is not None else told


def _copy(
    source: Any, target: Any, have: int, expected: int | None, name: str, console: Console
) -> bool:
    """Copies the rest of a file, no more of it than is expected; tells whether that was all."""
    left = (_LARGEST_FILE if expected is None else expected) - have
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=expected, completed=have)
        while chunk := source.read(min(_CHUNK, left + 1)):
            target.write(chunk[:left])
            if len(chunk) > left:
                return False
            left -= len(chunk)
            bar.update(task, advance=len(chunk))
    return True


def sha256(path: Path) -> str:
    """The file's hash, in hexadecimal."""
    with open_file(path, "a file to verify", _LARGEST_SET) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({in_words(error)})") from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a .zip or .tar archive into a folder, whole or not at all.

    Raises:
        DataError: it is damaged, a member would leave the folder, or it holds too much.
    """
    inside = folder / f".{archive.name}.unpacking"
    shutil.rmtree(inside, ignore_errors=True)
    try:
        inside.mkdir()
        if archive.suffix == ".zip":
            _unzip(archive, inside)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(inside, filter=_counting(archive))
        for entry in inside.iterdir():
            target = folder / entry.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            entry.rename(target)
    except DataError:
        raise
    except Exception as error:  # a damaged archive can raise almost anything
        raise DataError(f"{archive}: expected a sound archive ({in_words(error)})") from error
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _counting(archive: Path) -> Callable[[tarfile.TarInfo, str], tarfile.TarInfo | None]:
    """Python's filter for data, which also refuses members that are too large together."""
    left = _LARGEST_SET

    def check(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal left
        left -= member.size
        if left < 0:
            raise DataError(f"{archive}: expected at most {_LARGEST_SET} bytes in it, found more")
        return tarfile.data_filter(member, path)

    return check


def _unzip(archive: Path, folder: Path) -> None:
    """`ZipFile.extractall` drops what leads out of the folder; an archive that tries is refused."""
    root = folder.resolve()
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if not (root / name).resolve().is_relative_to(root):
                raise DataError(f"{archive}: expected members inside the folder, found {name!r}")
        if sum(member.file_size for member in file.infolist()) > _LARGEST_SET:
            raise DataError(f"{archive}: expected at most {_LARGEST_SET} bytes in it, found more")
        file.extractall(folder)


if __name__ == "__main__":
    sys.exit(main())
