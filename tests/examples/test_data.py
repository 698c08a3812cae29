"""Readers and pipelines, on small files of the formats that users have on disk."""

import pickle
import wave

import jax
import numpy as np
import pytest
from PIL import Image

from examples.data import DataError, audio, augment, cifar, idx, imagenet, ljspeech, wikitext
from examples.data.pipeline import Rows, Shard, batches_in_order, iterate, training_batches

# Pipelines


def numbers(count):
    return Rows(np.arange(count), np.arange(count))


def keep(example, _):
    return example


def test_a_pass_has_every_example_once_and_the_next_pass_another_order():
    passes = training_batches(numbers(12), 4, 7, keep).repeat(2)
    first, second = (
        np.concatenate([passes[i].inputs for i in part]) for part in (range(3), range(3, 6))
    )
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)
    again = training_batches(numbers(12), 4, 7, keep).repeat(2)
    assert all((passes[i].inputs == again[i].inputs).all() for i in range(6))
    other = training_batches(numbers(12), 4, 8, keep)
    assert any((passes[i].inputs != other[i].inputs).any() for i in range(3))


def test_shards_are_disjoint_parts_of_one_shuffle_and_of_one_size():
    parts = [training_batches(numbers(13), 2, 7, keep, Shard(host, 2)) for host in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    seen = np.concatenate([batch.inputs for part in parts for batch in part])
    assert len(set(seen)) == 12


def test_random_transformations_follow_seed_and_pass():
    def noise(example, rng):
        return rng.integers(1 << 30), example[1]

    batches = training_batches(numbers(4), 4, 1, noise).repeat(2)
    assert (batches[0].inputs == training_batches(numbers(4), 4, 1, noise)[0].inputs).all()
    assert set(batches[0].inputs).isdisjoint(batches[1].inputs)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_iterator_goes_on_from_its_state(threads):
    batches = training_batches(numbers(12), 4, 7, keep).repeat()
    iterator = iterate(batches, threads)
    for _ in range(4):
        next(iterator)
    state, rest = iterator.get_state(), [next(iterator).inputs for _ in range(3)]
    resumed = iterate(batches, threads)
    resumed.set_state(state)
    assert all((next(resumed).inputs == inputs).all() for inputs in rest)


def test_the_last_batch_in_order_is_padded_at_weight_0():
    batches = list(batches_in_order(numbers(5), 3, lambda example: example))
    assert [list(batch.inputs) for batch in batches] == [[0, 1, 2], [3, 4, 4]]
    assert [list(batch.weights) for batch in batches] == [[1, 1, 1], [1, 1, 0]]


# IDX


def test_fashion_mnist_of_the_debian_package_is_standardized():
    if not idx.FASHION_MNIST_DIR.is_dir():
        pytest.skip("Debian package dataset-fashion-mnist is not installed")
    dataset = idx.FashionMnist(images=True, train_limit=100)(None)
    assert dataset.train_inputs.shape == (100, 28, 28, 1)
    assert dataset.test_inputs.shape == (10_000, 28, 28, 1)
    assert abs(dataset.test_inputs.mean()) < 0.01
    assert abs(dataset.test_inputs.std() - 1) < 0.01
    assert set(dataset.test_targets) == set(range(10))


def test_fashion_mnist_that_is_nowhere_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "FASHION_MNIST_DIR", tmp_path / "none")
    with pytest.raises(DataError, match=r"none: expected.*dataset-fashion-mnist.*download"):
        idx.FashionMnist()(None)
    with pytest.raises(DataError, match=r"train-images.*this IDX file of Fashion-MNIST"):
        idx.FashionMnist()(tmp_path)


# CIFAR


def write_cifar(folder, classes, count=4):
    root = folder / cifar._LAYOUTS[classes][0]
    root.mkdir()
    _, train, test, key = cifar._LAYOUTS[classes]
    rng = np.random.default_rng(0)
    for file in (*train, test):
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = rng.integers(0, classes, count).tolist()
        batch = {b"data": data, key.encode(): labels, b"batch_label": b"one", b"filenames": []}
        (root / file).write_bytes(pickle.dumps(batch, protocol=2))
    return root


@pytest.mark.parametrize(("classes", "total"), [(10, 20), (100, 4)])
def test_cifar_batches_give_the_images_they_hold(tmp_path, classes, total):
    root = write_cifar(tmp_path, classes)
    dataset = cifar.Cifar(classes)(tmp_path)
    assert dataset.train_inputs.shape == (total, 32, 32, 3)
    assert dataset.train_inputs.dtype == np.uint8
    file = root / cifar._LAYOUTS[classes][1][0]
    batch = pickle.loads(file.read_bytes(), encoding="bytes")
    planes = batch[b"data"][1].reshape(3, 32, 32)
    assert (dataset.train_inputs[1, :, :, 2] == planes[2]).all()
    labels = batch[cifar._LAYOUTS[classes][3].encode()]
    assert list(dataset.train_targets[:4]) == labels
    assert cifar.Cifar(classes)(root).source == dataset.source  # the inner folder does too


def _repickled(**entries):
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    batch |= {name.encode(): value for name, value in entries.items()}
    return pickle.dumps({k: v for k, v in batch.items() if v is not None}, protocol=2)


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


BAD_CIFAR = {
    "truncated": (lambda content: content[:-9], "truncated or corrupt"),
    "not a pickle": (lambda content: b"GIF89a", "truncated or corrupt"),
    "code": (lambda content: pickle.dumps(Evil()), "has no place in a CIFAR batch"),
    "no labels": (lambda content: _repickled(labels=None), "the entry labels, found none"),
    "few labels": (lambda content: _repickled(labels=[1]), "expected 2 integer labels"),
    "high label": (lambda content: _repickled(labels=[1, 10]), "labels from 0 to 9"),
    "other data": (lambda content: _repickled(data=np.zeros((2, 5), np.uint8)), "3072"),
}


@pytest.mark.parametrize(("damage", "message"), BAD_CIFAR.values(), ids=BAD_CIFAR)
def test_a_damaged_cifar_batch_is_named(tmp_path, damage, message, capsys):
    path = write_cifar(tmp_path, 10) / "data_batch_3"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as error:
        cifar.Cifar(10)(tmp_path)
    assert str(error.value).startswith(f"{path}: expected")
    assert message in str(error.value)
    assert "must not run" not in capsys.readouterr().out


def test_missing_cifar_files_are_named(tmp_path):
    (write_cifar(tmp_path, 100) / "test").unlink()
    with pytest.raises(DataError, match=r"cifar-100-python/test: expected.*found no such file"):
        cifar.Cifar(100)(tmp_path)
    with pytest.raises(DataError, match=r"examples\.download cifar10"):
        cifar.Cifar(10)(None)
    with pytest.raises(DataError, match="nowhere: expected a folder"):
        cifar.Cifar(10)(tmp_path / "nowhere")


def test_crops_are_shifts_of_at_most_four_pixels_with_black_around_and_flips():
    image = np.arange(1, 1025, dtype=np.int32).reshape(1, 32, 32, 1)
    batch = np.repeat(image, 200, axis=0)
    out = np.asarray(augment.crop_and_flip(jax.random.key(0), batch))
    padded = np.pad(image[0, :, :, 0], 4)
    shifts = {
        (padded[i : i + 32, j : j + 32][:, ::step].tobytes()): (i, j, step)
        for i in range(9)
        for j in range(9)
        for step in (1, -1)
    }
    found = [shifts[image[:, :, 0].tobytes()] for image in out]
    assert {i for i, _, _ in found} == {j for _, j, _ in found} == set(range(9))
    assert 60 < sum(step == -1 for *_, step in found) < 140


def test_bytes_are_standardized_per_channel():
    images = np.full((1, 2, 2, 3), 255, np.uint8)
    out = augment.standardize((0.5, 0.0, 1.0), (0.5, 2.0, 1.0))(images)
    np.testing.assert_allclose(out[0, 0, 0], [1.0, 0.5, 0.0])


# ImageNet


@pytest.fixture
def imagenet_dir(tmp_path):
    """Three classes in train, two in val: JPEG files of one colour each, one of them grey."""
    colours = {"n01": (200, 0, 0), "n02": (0, 200, 0), "n03": (0, 0, 200)}
    for split, classes in (("train", ["n01", "n02", "n03"]), ("val", ["n01", "n03"])):
        for name in classes:
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                size = (40 + 10 * number, 60)
                Image.new("RGB", size, colours[name]).save(folder / f"{number}.JPEG")
    Image.new("L", (50, 50), 128).save(tmp_path / "train" / "n01" / "grey.JPEG")
    return tmp_path


def test_class_folders_give_crops_and_labels(imagenet_dir):
    stream = imagenet.ImageNet(size=16, resize=20, threads=2)(imagenet_dir)
    assert (stream.train_examples, stream.test_examples) == (10, 6)
    batch = next(iterate(stream.train(5, 0), 2))
    assert batch.inputs.shape == (5, 16, 16, 3)
    assert batch.inputs.dtype == np.float32
    for image, label in zip(batch.inputs, batch.targets, strict=True):
        colour = image.mean((0, 1)) * imagenet.STD + imagenet.MEAN
        grey = np.allclose(colour, 0.5, atol=0.02)
        assert grey or colour.argmax() == label
    last = list(stream.test(4))[-1]
    assert list(last.targets) == [2, 2, 2, 2]  # classes are numbered by the training set
    assert list(last.weights) == [1, 1, 0, 0]


def test_crops_are_of_the_right_part():
    gradient = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (50, 1, 3))
    image = Image.fromarray(gradient)
    center = imagenet.center_crop(image, 50, 30) * imagenet.STD + imagenet.MEAN
    np.testing.assert_allclose(center[0, :, 0] * 255, np.arange(35, 65), atol=0.6)
    crops = [imagenet.random_crop(image, 8, np.random.default_rng(seed)) for seed in range(40)]
    slopes = [np.sign(np.diff(crop[0, :, 0]).sum()) for crop in crops]
    assert 5 < slopes.count(-1) < 35  # mirrored or not
    assert len({crop.tobytes() for crop in crops}) > 35


BAD_IMAGENET = {
    "truncated": ("train/n02/1.JPEG", lambda content: content[:300], "truncated or corrupt"),
    "not JPEG": ("train/n02/1.JPEG", lambda content: b"hello", "truncated or corrupt"),
}


@pytest.mark.parametrize(("name", "damage", "message"), BAD_IMAGENET.values(), ids=BAD_IMAGENET)
def test_a_damaged_image_is_named(imagenet_dir, name, damage, message):
    path = imagenet_dir / name
    path.write_bytes(damage(path.read_bytes()))
    stream = imagenet.ImageNet(size=16, resize=20, threads=2)(imagenet_dir)
    with pytest.raises(DataError) as error:
        list(iterate(stream.train(10, 0), 2))
    assert f"{path}: expected a JPEG file" in str(error.value)
    assert message in str(error.value)


def test_folders_that_are_not_imagenet_are_named(imagenet_dir, tmp_path):
    load = imagenet.ImageNet()
    with pytest.raises(DataError, match=r"register at https://image-net\.org"):
        load(None)
    (imagenet_dir / "val" / "n09").mkdir()
    with pytest.raises(DataError, match="val/n09: expected a class that is in train too"):
        load(imagenet_dir)
    (imagenet_dir / "train" / "n09").mkdir()
    with pytest.raises(DataError, match="train/n09: expected JPEG files, found none"):
        load(imagenet_dir)
    with pytest.raises(DataError, match="n09/train: expected a folder"):
        load(imagenet_dir / "train" / "n09")


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


def test_a_text_is_a_stream_of_segments(text_dir):
    stream = wikitext.WikiText(words=3)(text_dir)
    assert stream.train_examples == 19
    assert next(iterate(stream.train(2, 0), 1)).inputs[0].shape == (2, 3)
    assert "19 + 7 words, 10 different" in stream.source


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
    last = list(stream.test(4))[-1]
    assert list(last.weights) == [1, 1, 0, 0]


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
