"""Files from anywhere: whatever is in them, the reader's own error comes out, in bounded memory."""

import gzip
import io
import math
import os
import pickle
import random
import shutil
import struct
import tracemalloc
import wave
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import download
from examples.data import (
    DataError,
    asterisk,
    audio,
    base,
    cifar,
    idx,
    imagenet,
    ljspeech,
    sotu,
    wikitext,
)
from tests.examples.test_download import tar_of, zip_of

SETTINGS = audio.Audio()


def refused(read, *arguments, match=None):
    """The message of the reader's own error: one line."""
    with pytest.raises(DataError, match=match) as error:
        read(*arguments)
    assert str(error.value).isprintable()
    return str(error.value)


def memory(begin=False):
    """KiB of the process: what it holds now, from where on the highest is kept; or the highest."""
    try:
        if begin:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text().split()
        return int(status[status.index("VmRSS:" if begin else "VmHWM:") + 1])
    except (OSError, ValueError):  # another system than Linux
        return 0


def peak(read):
    """Bytes that Python and NumPy hold at most meanwhile."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Valid files


def idx_file(shape=(3, 28, 28)):
    values = np.arange(math.prod(shape)) % 251
    return struct.pack(">4B3I", 0, 0, 8, 3, *shape) + values.astype(np.uint8).tobytes()


DATA = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)


def batch(protocol=2, data=DATA, labels=(3, 0, 9, 1), key=str.encode):
    entries = {"batch_label": key("one"), "labels": labels, "data": data, "filenames": [key("a")]}
    entries["labels"] = list(labels) if isinstance(labels, tuple) else labels
    return pickle.dumps({key(name): value for name, value in entries.items()}, protocol=protocol)


def image_file(kind, mode, size=(40, 30), **options):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def wav_file(samples=2000, rate=SETTINGS.sample_rate):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(range(200)) * (samples // 100))
    return buffer.getvalue()


TEXT = "Peace, we\u2019ve 1,000.50 reasons.\n <unk> for hope \u2014 \u00e9\n\n".encode() * 4
TEXTS = b"; Sounds\n\ndigits/1: One\nhelp: [tone] Press 1 (slowly)\nyes: Yes.\n"
METADATA = b"LJ-1|Dr. One|Doctor One\nLJ-2|Two\nLJ-1|Three|\n"


# Kinds and sizes of files


def read_wikitext(path):
    return wikitext.encode_training_text(path, 100)


READERS = {
    "idx": lambda path: idx.read_idx(path, 3),
    "cifar": lambda path: cifar.read_batch(path, "labels", 10),
    "image": imagenet.read_image,
    "wav header": lambda path: audio.count_samples(path, SETTINGS),
    "wav": lambda path: audio.read_sound(path, SETTINGS),
    "asterisk": asterisk.read_texts,
    "sotu": sotu.read_address,
    "wikitext": read_wikitext,
    "hash": download.sha256,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_pipes_devices_and_folders_are_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "device"):
        refused(read, tmp_path / name, match=f"{name}: expected .*a pipe, a device or a socket")
    refused(read, tmp_path / "folder", match="folder: expected .*, found a folder")
    refused(read, tmp_path / "loop", match="loop: expected .*, but cannot read it")
    refused(read, tmp_path / "none", match="none: expected .*, found no such file")
    with pytest.raises(DataError, match="cannot read it"):
        read(tmp_path / "a\0b")
    with pytest.raises(DataError, match="cannot read it"):
        read(tmp_path / ("x" * 1000))


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_file_that_is_too_large_is_refused_unread(tmp_path, read):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    assert peak(lambda: refused(read, tmp_path / "large", match="at most .* bytes")) < 2**20


def test_a_file_that_grows_while_it_is_read_is_refused():
    path = Path("/proc/self/status")  # a regular file of 0 bytes that has some
    if not path.exists():
        pytest.skip("no /proc here")
    refused(base.read_bytes, path, "a text file", 100, match="changed while read")


def test_gzip_bombs_are_refused_at_their_limit(tmp_path):
    bomb, path = gzip.compress(bytes(2**26)), tmp_path / "bomb.gz"
    for content, read, message in (
        (bomb, asterisk.read_texts, "at most 1,048,576 bytes, found more"),
        (gzip.compress(idx_file()) + bomb, READERS["idx"], "found more: too long"),
        (gzip.compress(idx_file()[:4] + b"\xff" * 12) + bomb, READERS["idx"], "1 to 411,041,792"),
    ):
        path.write_bytes(content)
        assert peak(lambda read=read, message=message: refused(read, path, match=message)) < 2**23


@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (0, 28, 28), (0, 2**32 - 1, 2**32 - 1)])
def test_an_idx_header_of_impossible_sizes_is_refused(tmp_path, shape):
    path = tmp_path / "x"
    path.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *shape))
    refused(READERS["idx"], path, match="expected 1 to 411,041,792 values by its header, found")


# CIFAR


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", [str.encode, str])
@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8, np.dtype(">i2").type, None])
def test_a_batch_of_every_protocol_is_read(tmp_path, protocol, key, kind):
    labels = (3, 0, 9, 1)
    labels = np.array(labels) if kind is None else tuple(map(kind, labels))
    frozen, fortran = DATA.copy(), np.asfortranarray(DATA)
    frozen.flags.writeable = False
    for data in (DATA, frozen, fortran):
        (tmp_path / "b").write_bytes(batch(protocol, data, labels, key))
        images, targets = READERS["cifar"](tmp_path / "b")
        assert (images == DATA.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)).all()
        assert targets.dtype == np.int32
        assert targets.tolist() == [3, 0, 9, 1]


def u1(state=b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"):
    """A data type as Python 2 wrote it."""
    return b"cnumpy\ndtype\nq\x03U\x02u1K\x00K\x01\x87Rq\x04" + state


def array(shape, dtype, content):
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
        + b"(K\x01"
        + shape
        + dtype
        + b"\x89T"
        + struct.pack("<i", len(content))
        + content
        + b"tb"
    )


def entries(data, labels=b"](K\x01K\x02e"):
    return b"\x80\x02}q\x00(U\x04data" + data + b"U\x06labels" + labels + b"u."


SHAPE = b"K\x02M\x00\x0c\x86"


def test_a_batch_of_python_2_is_read(tmp_path):
    (tmp_path / "b").write_bytes(entries(array(SHAPE, u1(), bytes(3072) + b"\x01" * 3072)))
    images, targets = READERS["cifar"](tmp_path / "b")
    assert images.sum(axis=(1, 2, 3)).tolist() == [0, 3072]
    assert targets.tolist() == [1, 2]


TEXT_OF_A_MEGABYTE = b"X" + struct.pack("<I", 2**20) + b"x" * 2**20 + b"q\x01"
HOSTILE = {
    "memory for a memo": b"\x80\x02Nr\xff\xff\xff\x0f.",
    "memory for a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**31) + b".",
    "memory for bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "memory for a text": b"\x80\x04X\xff\xff\xff\xff.",
    "memory for a number": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "a frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
    "memory for an array": entries(array(b"J\x00\x00\x00\x1cM\x00\x0c\x86", u1(), b"x")),
    "a size below 0": entries(array(b"J\xff\xff\xff\xffM\x00\x0c\x86", u1(), b"x")),
    "sizes that overflow": entries(array(b"\x8a\x09" + b"\x01" * 9 + b"\x85", u1(), b"x")),
    "objects": entries(array(SHAPE, u1().replace(b"u1", b"O8"), bytes(6144))),
    "a type in use that changes": entries(
        array(SHAPE, u1(), bytes(6144)), b"h\x04(K\x03U\x01|NNNK\x08K\x08K\x3ftb"
    ),
    "a type in use that grows": entries(  # reading it would leave the array's memory
        array(b"K\x00M\x00\x0c\x86", u1(), b""),
        b"]("
        + array(b"K\x08\x85", u1(b"(K\x03U\x01|NNNK\x08K\x01K\x00tb").replace(b"u1", b"S8"), b"x" * 64)
        + b"h\x04(K\x03U\x01|NNNJ\x00\x00\x00\x10K\x01K\x00tb0e",
    ),
    "a type of itself": entries(array(SHAPE, u1(b"(K\x03U\x01|h\x04h\x04NNNNtb"), b"x")),
    "operations": b"\x80\x02" + b"]" * 2**20 + b".",
    "bytes without end": (
        b"\x80\x02" + TEXT_OF_A_MEGABYTE + b"c_codecs\nencode\nq\x02" + b"h\x02h\x01U\x06latin1\x86R" * 99
    ),
    "a key to hash": b"\x80\x02}" + b"N" + b"\x85" * 4000 + b"Ns.",
    "labels of labels": entries(array(SHAPE, u1(), bytes(6144)), b"](]]e"),
    "labels that are true": entries(array(SHAPE, u1(), bytes(6144)), b"](\x88\x89e"),
    "a giant label": entries(
        array(SHAPE, u1(), bytes(6144)), b"](K\x01\x8b" + struct.pack("<i", 9**5) + b"x" * 9**5 + b"e"
    ),
    "a call of nothing": b"\x80\x02K\x01)R.",
    "a call of a type": b"\x80\x02cnumpy\nndarray\n)R.",
    "a state for a list": b"\x80\x02]]b.",
    "a class": b"\x80\x02cos\nsystem\nU\x04true\x85R.",
    "a persistent number": b"\x80\x02K\x01Q.",
    "no protocol": b"N.",
    "protocol 1": b"\x80\x01}.",
    "nothing": b"",
    "no value": b"\x80\x02.",
    "a list of itself": b"\x80\x02]q\x00h\x00ah\x00.",
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_is_refused_in_little_memory(tmp_path, content):
    (tmp_path / "b").write_bytes(content)
    used = peak(lambda: refused(READERS["cifar"], tmp_path / "b", match="b: expected"))
    assert used < 2**21 + 8 * len(content)


# Images


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a"]
)
def test_only_jpeg_and_png_are_opened_whatever_the_name(tmp_path, monkeypatch, content):
    monkeypatch.setattr("subprocess.Popen", lambda *_: pytest.fail("Ghostscript was started"))
    path = tmp_path / "x.JPEG"
    path.write_bytes(content + bytes(100))
    refused(imagenet.read_image, path, match="found another format")
    for kind, mode in (("PNG", "P"), ("PNG", "I;16"), ("JPEG", "CMYK"), ("JPEG", "L")):
        if mode != "I;16":
            path.write_bytes(image_file(kind, mode))
        else:
            Image.fromarray(np.zeros((30, 40), np.uint16)).save(path, "PNG")
        assert (imagenet.read_image(path).mode, imagenet.read_image(path).size) == ("RGB", (40, 30))
    path.write_bytes(image_file("PNG", "P", transparency=b"\0\1\2"))
    assert imagenet.read_image(path).size == (40, 30)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pixels_that_no_such_file_can_hold_are_refused(tmp_path, kind):
    path, content = tmp_path / "x.JPEG", image_file(kind, "RGB")
    if kind == "PNG":
        content = sealed(content[:16] + struct.pack(">II", 50_000, 50_000) + content[24:])
    else:
        place = content.index(b"\xff\xc0") + 5
        content = content[:place] + struct.pack(">HH", 65_000, 65_000) + content[place + 4 :]
    path.write_bytes(content)
    refused(imagenet.read_image, path, match=r"at most [\d,]+ pixels, found (65000|50000) x")


def test_a_line_of_pixels_is_cropped_without_the_whole_of_it(tmp_path):
    for size in ((65_000, 1), (1, 65_000)):
        (tmp_path / "x.JPEG").write_bytes(image_file("JPEG", "RGB", size))
        image = imagenet.read_image(tmp_path / "x.JPEG")
        before = memory(begin=True)
        assert imagenet.center_crop(image, 256, 224).shape == (224, 224, 3)
        assert imagenet.random_crop(image, 224, np.random.default_rng(0)).shape == (224, 224, 3)
        assert memory() - before < 2**16  # 64 MiB


def test_the_center_is_that_of_the_whole_image_resized():
    rng = np.random.default_rng(0)
    for size in ((50, 80), (80, 51), (33, 33), (301, 47)):
        noise = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        image, scale = Image.fromarray(noise), 40 / min(size)
        width, height = (round(side * scale) for side in size)
        whole = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - 32) // 2, (height - 32) // 2
        expected = np.asarray(whole.crop((left, top, left + 32, top + 32))).astype(int)
        assert np.abs(imagenet.center_crop(image, 40, 32) - expected).max() <= 1  # of rounding


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path):
    for folder in (".git", "n01"):
        (tmp_path / folder).mkdir()
        for file in ("._a.JPEG", "a.JPEG", "b.txt"):
            (tmp_path / folder / file).write_bytes(b"")
    assert imagenet.class_folders(tmp_path) == ["n01"]
    assert imagenet.read_index(tmp_path, ["n01"]) == [(tmp_path / "n01" / "a.JPEG", 0)]
    refused(imagenet.visible, tmp_path / "n01" / "a.JPEG", match="a folder that can be read")
    load = imagenet.ImageNet(size=40, resize=30)
    refused(load, tmp_path, match=r"data\.resize of at least data\.size=40, found 30")


# Texts and sound

OUTSIDE = ["../x", "/etc/x", "a/../../x", "a//x", "./x", "..", "a\\..\\x", "C:x", "a\0b", "a/"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_do_not_leave_the_folder(tmp_path, name):
    (tmp_path / "metadata.csv").write_bytes(METADATA[:24] + name.encode() + b"|Two\n")
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "LJ-1.wav").write_bytes(wav_file())
    message = r"metadata\.csv, line 2: expected the name of a file inside the folder"
    if name not in ("a/", ".."):  # which are names of files with `.wav` at their ends
        refused(ljspeech.read_clips, tmp_path, SETTINGS, match=message)
    if ":" not in name and name not in ("a/", ".."):
        (tmp_path / "core-sounds-en.txt").write_text(f"{name}: Two\n")
        refused(
            asterisk.AsteriskSounds(), tmp_path, match=r"core-sounds-en\.txt: expected the name"
        )
    refused(base.path_inside, tmp_path, name, "list", match="inside the folder, found")
    assert base.path_inside(tmp_path, "a/b.wav", "list") == tmp_path / "a" / "b.wav"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_texts_are_utf_8_with_or_without_a_mark_in_lines_that_a_line_feed_ends(tmp_path, mark):
    path = tmp_path / "t"
    path.write_bytes(mark + "a\u2028b\x0b\x85\rc\nd".encode())
    assert base.read_lines(path, "a text", 100) == ["a\u2028b\x0b\x85\rc", "d"]
    text, numbers = read_wikitext(path)
    assert set(numbers) == {"a", "b", "c", "d", "<eos>"}
    assert text.tolist().count(numbers["<eos>"]) == 2
    assert sotu.read_address(path)[0] == "a"
    path.write_bytes(mark + b"yes: Yes\r\nno: No\x0bno\n")
    assert asterisk.read_texts(path) == {"yes": "Yes", "no": "No no"}
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "LJ-1.wav").write_bytes(wav_file())
    (tmp_path / "metadata.csv").write_bytes(mark + "LJ-1|One|\r\nLJ-1|a\u2028b|\n".encode())
    clips = ljspeech.read_clips(tmp_path, SETTINGS)
    read = ["".join(ljspeech.SYMBOLS[s] for s in clip.symbols) for clip in clips]
    assert read == ["one~", "a b~"]


def test_lines_and_vocabularies_without_end_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "t"
    path.write_bytes(b"yes: " + b"[" * 2**16)
    refused(asterisk.read_texts, path, match="at most 4,096 characters, found 65,541 in line 1")
    monkeypatch.setattr(wikitext, "_LONGEST_LINE", 20)
    path.write_bytes(b"the cat\n" + b"x" * 20)
    refused(read_wikitext, path, match="lines of fewer than 20 characters")
    monkeypatch.setattr(wikitext, "_MOST_WORDS", 2)
    path.write_bytes(b"the cat\n")
    refused(read_wikitext, path, match="at most 2 different words, found more")


def test_sound_without_end_is_refused(tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(wav_file(22_050 * 121))
    refused(READERS["wav"], path, match=r"at most [\d,]+ bytes")
    path.write_bytes(wav_file(22_100 * 120))
    refused(READERS["wav header"], path, match="at most 120 seconds, found 120")
    header = wav_file()[:44]
    for place, value in ((22, b"\0\0"), (34, b"\0\0"), (4, b"\xff" * 4), (16, b"\xff" * 4)):
        path.write_bytes(header[:place] + value + header[place + len(value) :] + bytes(10))
        refused(READERS["wav"], path)


# Any damage


def sealed(content):
    """A PNG file with the check sums that its chunks should have."""
    out, place = bytearray(content[:8]), 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunk = content[place + 4 : place + 8 + size]
        out += content[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += 12 + size
    return bytes(out) + content[place:]


def whole(content):
    return content


def read_crops(path):
    image = imagenet.read_image(path)
    return imagenet.center_crop(image, 40, 32), imagenet.random_crop(
        image, 32, np.random.default_rng(0)
    )


def read_mel(path):
    audio.count_samples(path, SETTINGS)
    return audio.mel_spectrogram(audio.read_sound(path, SETTINGS), SETTINGS)


def read_metadata(path):
    (path.parent / "wavs").mkdir(exist_ok=True)
    for name in ("LJ-1", "LJ-2"):
        (path.parent / "wavs" / f"{name}.wav").write_bytes(wav_file())
    return ljspeech.read_clips(path.parent, SETTINGS)


def read_sounds(path):
    (path.parent / "digits").mkdir(exist_ok=True)
    for name in ("digits/1", "help", "yes"):
        (path.parent / f"{name}.wav").write_bytes(wav_file(rate=8000))
    return asterisk.AsteriskSounds(test_clips=1)(path.parent)


def unpack(path):
    folder = path.parent / "unpacked"
    folder.mkdir()
    try:
        download.unpack(path, folder)
    finally:
        shutil.rmtree(folder)
        assert os.listdir(path.parent) == [path.name]


MEMBERS = {"inner/a.txt": b"A" * 700, "inner/b.txt": b"B", "c": b""}
LIST = "core-sounds-en.txt"
JPEGS = [
    image_file("JPEG", "RGB"),
    image_file("JPEG", "RGB", progressive=True),
    image_file("JPEG", "L"),
    image_file("JPEG", "CMYK"),
]
PNGS = [image_file("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "1")]
BATCHES = [batch(protocol, labels=tuple(map(np.int64, range(4)))) for protocol in range(2, 6)]
BATCHES += [batch(2), batch(5), entries(array(SHAPE, u1(), bytes(6144)))]

# Name of the file, valid contents, what is done to a damaged content, the reader.
FORMATS = {
    "idx": ("x", [idx_file(), idx_file((1, 1, 1))], whole, READERS["idx"]),
    "gzip": ("x.gz", [gzip.compress(idx_file((1, 9, 9)))], whole, READERS["idx"]),
    "idx in gzip": ("x.gz", [idx_file()], gzip.compress, READERS["idx"]),
    "cifar": ("x", BATCHES, whole, READERS["cifar"]),
    # Most damage to a batch is to its pixels; here there are few.
    "pickle": ("x", [batch(p, DATA[:1, :9]) for p in range(2, 6)], whole, READERS["cifar"]),
    "jpeg": ("x.JPEG", JPEGS, whole, read_crops),
    "png": ("x.JPEG", PNGS, whole, read_crops),
    "png sealed": ("x.JPEG", PNGS, sealed, read_crops),
    "wav": ("x.wav", [wav_file(), wav_file(100)], whole, read_mel),
    "wav header": ("x.wav", [wav_file()[:60]], whole, read_mel),
    "metadata": ("metadata.csv", [METADATA], whole, read_metadata),
    "asterisk": (LIST, [TEXTS], whole, read_sounds),
    "asterisk in gzip": (f"{LIST}.gz", [TEXTS], gzip.compress, read_sounds),
    "sotu": ("x", [TEXT], whole, READERS["sotu"]),
    "wikitext": ("x", [TEXT], whole, READERS["wikitext"]),
    "zip": ("x.zip", [zip_of(MEMBERS)], whole, unpack),
    "tar": ("x.tar.gz", [gzip.decompress(tar_of(MEMBERS))[:6000]], gzip.compress, unpack),
    "tar.gz": ("x.tar.gz", [tar_of(MEMBERS)], whole, unpack),
    "tar.bz2": ("x.tar.bz2", [tar_of(MEMBERS, "bz2")], whole, unpack),
}
EDGES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"]
EDGES += [b"\x7f\xff\xff\xff", b"\n", b"|", b"../", b"\r", b"\xef\xbb\xbf", b"\xff" * 8]


def damaged(content, rng):
    """The content after one to four random changes."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        if rng.random() < 0.5:  # headers are where the harm is
            place = min(place, rng.randrange(64))
        size = rng.choice([1, 1, 2, 4, rng.randrange(1, 200)])
        change = rng.randrange(6)
        if change == 0 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            edge = rng.choice(EDGES)
            content[place : place + len(edge)] = edge
        elif change == 2:
            content[place:place] = rng.choice(EDGES)
        elif change == 3:
            del content[place : place + size]
        elif change == 4:
            content[place:place] = content[place : place + size] * rng.choice([1, 1, 50])
        else:
            content[place : place + size] = rng.randbytes(size)
    return bytes(content[: rng.randrange(len(content) + 1)] if rng.random() < 0.1 else content)


def fuzz(folder, name, count, seed):
    """How often damaged files were read, and how often refused."""
    file, contents, finish, read = FORMATS[name]
    rng, outcomes = random.Random(seed), Counter()
    before = memory(begin=True)
    for content in contents:
        (folder / file).write_bytes(finish(content))
        if name not in ("pickle", "wav header"):
            read(folder / file)  # or nothing would be tested
    for number in range(count):
        (folder / file).write_bytes(finish(damaged(rng.choice(contents), rng)))
        try:
            read(folder / file)
            outcomes["read"] += 1
        except DataError as error:
            outcomes["refused" if "\n" not in str(error) else "refused in two lines"] += 1
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}, file {number}: {error!r}") from error
    grown = memory() - before
    assert grown < 2**18, f"{grown} KiB more than before"  # 256 MiB
    assert not outcomes["refused in two lines"]
    return outcomes | {"KiB": grown}


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_but_the_own_error_comes_of_a_hundred_damaged_files(tmp_path, name):
    assert fuzz(tmp_path, name, 100, 0)["refused"] > 5


@pytest.mark.nightly
@pytest.mark.parametrize("name", FORMATS)
def test_nothing_but_the_own_error_comes_of_thousands_of_damaged_files(tmp_path, name):
    print(name, dict(fuzz(tmp_path, name, 5000, 1)))
