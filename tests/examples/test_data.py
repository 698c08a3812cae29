"""Pipelines and readers of images, on small files of the formats that users have on disk."""

import pickle

import jax
import numpy as np
import pytest
from PIL import Image

from examples.data import DataError, augment, cifar, idx, imagenet
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


def test_hosts_share_the_batches_that_one_would_read_in_every_pass():
    alone = training_batches(numbers(13), 4, 7, keep).repeat(2)
    parts = [training_batches(numbers(13), 2, 7, keep, Shard(n, 2)).repeat(2) for n in range(2)]
    assert len(alone) == len(parts[0]) == 6
    for batch, *shares in zip(alone, *parts, strict=True):
        assert sorted(batch.inputs) == sorted(np.concatenate([share.inputs for share in shares]))


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


def test_hosts_read_their_rows_of_the_batches_in_order():
    same = lambda example: example
    for host, inputs, weights in (
        (0, [[0, 1], [4, 4]], [[1, 1], [1, 0]]),
        (1, [[2, 3], [4, 4]], [[1, 1], [0, 0]]),
    ):
        batches = list(batches_in_order(numbers(5), 2, same, shard=Shard(host, 2)))
        assert [list(batch.inputs) for batch in batches] == inputs
        assert [list(batch.weights) for batch in batches] == weights


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


def test_fashion_mnist_in_the_format_of_cifar_is_the_grey_image_in_black(idx_dir):
    dataset = idx.FashionMnistAsCifar(train_limit=7)(idx_dir)
    images = idx.read_idx(idx_dir / "train-images-idx3-ubyte", dimensions=3)
    assert dataset.train_inputs.shape == (7, 32, 32, 3)
    assert dataset.train_inputs.dtype == np.uint8
    for channel in range(3):
        assert (dataset.train_inputs[:, 2:30, 2:30, channel] == images[:7]).all()
    assert dataset.train_inputs.sum() == 3 * images[:7].astype(int).sum()  # 0 around
    assert dataset.test_inputs.shape == (100, 32, 32, 3)
    assert dataset.source == (
        "the first 7 + 100 of 300 + 100 Fashion-MNIST images from IDX files, "
        "padded and tripled to 32 x 32 x 3"
    )


# CIFAR


def write_cifar(folder, classes, count=4, draw=None):
    """The files of CIFAR with images (count, 32, 32, 3) and labels from `draw`, or noise."""
    root = folder / cifar._LAYOUTS[classes][0]
    root.mkdir()
    _, train, test, key = cifar._LAYOUTS[classes]
    rng = np.random.default_rng(0)
    noise = lambda: (rng.integers(0, 256, (count, 32, 32, 3)), rng.integers(0, classes, count))
    for file in (*train, test):
        images, labels = draw(rng, count) if draw else noise()
        data = images.transpose(0, 3, 1, 2).reshape(count, 3072).astype(np.uint8)
        batch = {b"data": data, key.encode(): labels.tolist(), b"batch_label": b"one"}
        (root / file).write_bytes(pickle.dumps(batch | {b"filenames": []}, protocol=2))
    return root


@pytest.mark.parametrize(("load", "total"), [(cifar.Cifar10(), 20), (cifar.Cifar100(), 4)])
def test_cifar_batches_give_the_images_they_hold(tmp_path, load, total):
    classes = load.classes
    root = write_cifar(tmp_path, classes)
    dataset = load(tmp_path)
    assert dataset.train_inputs.shape == (total, 32, 32, 3)
    assert dataset.train_inputs.dtype == np.uint8
    file = root / cifar._LAYOUTS[classes][1][0]
    batch = pickle.loads(file.read_bytes(), encoding="bytes")
    planes = batch[b"data"][1].reshape(3, 32, 32)
    assert (dataset.train_inputs[1, :, :, 2] == planes[2]).all()
    labels = batch[cifar._LAYOUTS[classes][3].encode()]
    assert list(dataset.train_targets[:4]) == labels
    assert load(root).source == dataset.source  # the inner folder does too


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
        cifar.Cifar10()(tmp_path)
    assert str(error.value).startswith(f"{path}: expected")
    assert message in str(error.value)
    assert "must not run" not in capsys.readouterr().out


def test_missing_cifar_files_are_named(tmp_path):
    (write_cifar(tmp_path, 100) / "test").unlink()
    with pytest.raises(DataError, match=r"cifar-100-python/test: expected.*found no such file"):
        cifar.Cifar100()(tmp_path)
    with pytest.raises(DataError, match=r"examples\.download cifar10.*fashion_mnist_ recipe"):
        cifar.Cifar10()(None)
    with pytest.raises(DataError, match="nowhere: expected a folder"):
        cifar.Cifar10()(tmp_path / "nowhere")


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
    assert batch.inputs.dtype == np.uint8
    for image, label in zip(batch.inputs, batch.targets, strict=True):
        colour = image.mean((0, 1)) / 255
        grey = np.allclose(colour, 0.5, atol=0.02)
        assert grey or colour.argmax() == label
    last = list(stream.test(4))[-1]
    assert list(last.targets) == [2, 2, 2, 2]  # classes are numbered by the training set
    assert list(last.weights) == [1, 1, 0, 0]


def test_the_first_classes_can_be_taken(imagenet_dir):
    stream = imagenet.ImageNet(classes=2, size=16, resize=20)(imagenet_dir)
    assert (stream.train_examples, stream.test_examples) == (7, 3)  # val has none of the second
    assert stream.source == "7 + 3 images of 2 classes"
    with pytest.raises(DataError, match="val: expected images of one of 1 classes"):
        imagenet.read_index(imagenet_dir / "val", ["n02"])


def test_crops_are_of_the_right_part():
    gradient = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (50, 1, 3))
    image = Image.fromarray(gradient)
    center = imagenet.center_crop(image, 50, 30)
    np.testing.assert_array_equal(center[0, :, 0], np.arange(35, 65))
    crops = [imagenet.random_crop(image, 8, np.random.default_rng(seed)) for seed in range(40)]
    slopes = [np.sign(int(crop[0, -1, 0]) - int(crop[0, 0, 0])) for crop in crops]
    assert 5 < slopes.count(-1) < 35  # mirrored or not
    assert len({crop.tobytes() for crop in crops}) > 35


BAD_IMAGENET = {
    "truncated": ("train/n02/1.JPEG", lambda content: content[:300], "truncated or corrupt"),
    "not JPEG": ("train/n02/1.JPEG", lambda content: b"hello", "found another format"),
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
