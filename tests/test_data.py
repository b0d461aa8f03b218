"""The data sets: what is in them, what is refused, and how they are batched."""

import sys
import types

import numpy as np
import pytest
import torch

from tinynet.data import (
    DataError,
    ImageBatches,
    ImageData,
    NameBatches,
    ShuffledBatches,
    SunspotBatches,
    TextBatches,
    TextData,
    load_images,
    load_names,
    load_sunspots,
    load_text,
    shift_images,
)
from tinynet.data.archive import FINGERPRINTS, SHIPPED, fingerprint, read_archive


def tiny_data(count: int = 10, side: int = 5) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 2
    return ImageData("tiny", images, labels, images[:3], labels[:3], ("even", "odd"), shift=1)


def test_mnist5k_is_what_it_says():
    data = load_images("mnist5k")
    assert data.image_shape == (1, 28, 28) and data.classes == 10
    assert len(data.train_images) == 4000 and len(data.test_images) == 1000
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    assert torch.bincount(data.train_labels).tolist() == [400] * 10
    assert torch.bincount(data.test_labels).tolist() == [100] * 10


def test_mnist5k_test_images_are_the_last_hundred_of_each_class():
    arrays = read_archive("mnist5k")
    data = load_images("mnist5k")
    for label in range(10):
        expected = arrays["images"][arrays["labels"] == label][-100:]
        assert np.array_equal(data.test_images[data.test_labels == label, 0].numpy(), expected)


def test_digits_is_what_it_says():
    data = load_images("digits")
    assert data.image_shape == (1, 8, 8) and data.classes == 10
    assert len(data.train_images) == 1500 and len(data.test_images) == 297
    assert int(data.train_images.max()) == 16
    assert data.train_labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_names_are_what_they_say():
    data = load_names()
    assert len(data.train_names) == len(data.train_labels) == 3974
    assert len(data.test_names) == len(data.test_labels) == 993
    assert len(data.languages) == 13 and not set(data.train_names) & set(data.test_names)
    counts = torch.bincount(torch.cat([data.train_labels, data.test_labels]), minlength=13).tolist()
    assert max(counts) == 480 and sum(counts) == 4967 and min(torch.bincount(data.test_labels).tolist()) >= 11
    assert data.majority == pytest.approx(0.097, abs=5e-4)
    languages = dict(zip(data.train_names, data.train_labels.tolist(), strict=True))
    assert data.languages[languages["Abba"]] == "Italian" and data.languages[languages["Aas"]] == "Estonian"
    assert str(data) == "names, 3,974 train and 993 test names of 106 different characters, 13 languages"


def test_a_character_that_no_train_name_has_is_number_0():
    data = load_names()
    assert data.encode(data.characters[0] + "𝄞" + data.characters[-1]).tolist() == [1, 0, len(data.characters)]
    assert data.vocabulary_size == len(data.characters) + 1


def test_sunspots_are_what_they_say():
    data = load_sunspots()
    assert data.years.tolist() == list(range(1700, 2009))
    assert data.sunspots[:5].tolist() == [5.0, 11.0, 16.0, 23.0, 36.0]
    assert float(data.sunspots.max()) == pytest.approx(190.2)  # of 1957
    error = (data.persistence - data.sunspots[-58:]).square().mean().sqrt()
    assert float(error) == pytest.approx(32.79, abs=0.005)


def test_text_is_what_it_says():
    data = load_text()
    assert len(data.train) == 465_048 - 55_200 and len(data.test) == 55_200 and len(data.characters) == 103
    assert data.decode(data.train[:22]) == 'The "assert" statement'
    assert data.encode("assert").tolist() == data.train[5:11].tolist()
    with pytest.raises(ValueError, match="the text has no character '𝄞'"):
        data.encode("clef: 𝄞")


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_each_shipped_file_has_its_provenance_and_license_beside_it(name):
    text = (SHIPPED / f"{name}.md").read_text()
    assert "License" in text and "rebuild" in text


def test_unknown_name_is_refused():
    with pytest.raises(DataError, match="unknown image data 'mnist6k', expected one of mnist5k, digits"):
        load_images("mnist6k")


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("name", FINGERPRINTS)
def test_truncated_file_is_refused(tmp_path, name, fraction):
    path = tmp_path / f"{name}.npz"
    content = (SHIPPED / f"{name}.npz").read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(DataError, match="cannot be read"):
        read_archive(name, path)


@pytest.mark.parametrize("position", [0.15, 0.3, 0.45, 0.6])
@pytest.mark.parametrize("name", FINGERPRINTS)
def test_damaged_file_is_refused(tmp_path, name, position):
    content = bytearray((SHIPPED / f"{name}.npz").read_bytes())
    content[int(position * len(content))] ^= 0x10
    path = tmp_path / f"{name}.npz"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_archive(name, path)


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_another_set_is_refused(name):
    other = "text" if name != "text" else "names"
    with pytest.raises(DataError, match=f"is not the {name} data that tinynet ships"):
        read_archive(name, SHIPPED / f"{other}.npz")


def test_foreign_files_are_refused(tmp_path):
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    with pytest.raises(DataError, match="cannot be read"):
        read_archive("digits", text)
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros((2, 8, 8), np.uint8), labels=np.zeros(2, np.uint8))
    with pytest.raises(DataError, match="is not the digits data"):
        read_archive("digits", other)
    array = tmp_path / "array.npz"
    with open(array, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="cannot be read"):
        read_archive("digits", array)
    with pytest.raises(DataError, match="is missing"):
        read_archive("digits", tmp_path / "absent.npz")


def test_fingerprint_sees_names_shapes_dtypes_and_values():
    array = np.arange(6, dtype=np.uint8)
    prints = [
        fingerprint(each)
        for each in (
            {"a": array},
            {"b": array},
            {"a": array.reshape(2, 3)},
            {"a": array.view(np.int8)},
            {"a": array[::-1]},
        )
    ]
    assert len(set(prints)) == len(prints)


def test_shift_images_moves_each_image_by_its_own_shift():
    images = torch.arange(3 * 2 * 4 * 5, dtype=torch.float32).reshape(3, 2, 4, 5) + 1
    shifted = shift_images(images, torch.tensor([[0, 0], [1, -2], [-3, 4]]))
    assert torch.equal(shifted[0], images[0])
    expected = torch.zeros(2, 2, 4, 5)
    expected[0, :, 1:, :3] = images[1, :, :3, 2:]
    expected[1, :, :1, 4:] = images[2, :, 3:, :1]
    assert torch.equal(shifted[1:], expected)
    assert shifted.is_contiguous() and shifted.dtype == images.dtype


def test_an_epoch_holds_every_image_once_and_epochs_differ():
    batches = ImageBatches(tiny_data(), 4)
    assert len(batches) == 3
    epochs = [torch.cat([images for images, _ in batches.train(epoch)]) for epoch in (0, 1)]
    expected = batches.normalize(batches.train_images)
    for epoch in epochs:
        order = (epoch.flatten(1)[:, None] == expected.flatten(1)[None]).all(2).long().argmax(1)
        assert sorted(order.tolist()) == list(range(10))
        assert torch.equal(epoch, expected[order])
    assert not torch.equal(*epochs)


def test_labels_stay_with_their_images():
    batches = ImageBatches(tiny_data(), 4)
    expected = batches.normalize(batches.train_images)
    for images, labels in batches.train(3):
        for image, label in zip(images, labels, strict=True):
            index = [torch.equal(image, each) for each in expected].index(True)
            assert int(label) == index % 2


def test_an_epoch_is_a_function_of_seed_and_epoch():
    def epoch(seed: int, number: int, start: int = 0) -> torch.Tensor:
        batches = ImageBatches(tiny_data(), 2, seed=seed, shift=1)
        return torch.cat([images for images, _ in batches.train(number, start)])

    assert torch.equal(epoch(5, 2), epoch(5, 2))
    assert torch.equal(epoch(5, 2)[6:], epoch(5, 2, start=3))
    assert not torch.equal(epoch(5, 2), epoch(6, 2))


def test_shifts_reach_every_offset_and_no_further():
    data = tiny_data(count=400)
    data.train_images.zero_()
    data.train_images[:, :, 2, 2] = 255
    batches = ImageBatches(data, 400, shift=2)
    images, _ = next(batches.train(0))
    peaks = images.flatten(1).argmax(1)
    assert set(peaks.tolist()) == set(range(25))


def test_normalized_train_images_have_mean_0_and_deviation_1():
    data = load_images("mnist5k")
    batches = ImageBatches(data, 100)
    images = batches.normalize(batches.train_images)
    assert images.dtype == torch.float32
    assert abs(images.mean().item()) < 1e-4 and abs(images.std().item() - 1) < 1e-4


def test_test_batches_keep_their_order():
    batches = ImageBatches(tiny_data(), 4, shift=1)
    images = torch.cat([images for images, _ in batches.test(batch_size=2)])
    assert torch.equal(images, batches.normalize(batches.test_images))


@pytest.mark.parametrize(("arguments", "message"), [({"batch_size": 0}, "batch_size"), ({"shift": -1}, "shift")])
def test_bad_batch_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageBatches(tiny_data(), **{"batch_size": 2, **arguments})


def test_absent_torchvision_is_reported_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"cifar10 is downloaded by torchvision.*pip install"):
        load_images("cifar10")


class FakeCifar10:
    """The attributes of torchvision.datasets.CIFAR10: images [N, H, W, C], a list of labels, class names."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        self.data = np.full((4 if train else 2, 32, 32, 3), (1, 2, 3), dtype=np.uint8)
        self.targets = [0, 1, 1, 0][: len(self.data)]
        self.classes = ["airplane", "automobile"]


def put_torchvision(monkeypatch, **datasets) -> None:
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(**datasets)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_torchvision_images_get_their_channels_first(monkeypatch, tmp_path):
    put_torchvision(monkeypatch, CIFAR10=FakeCifar10)
    data = load_images("cifar10", tmp_path)
    assert data.train_images.shape == (4, 3, 32, 32) and data.test_images.shape == (2, 3, 32, 32)
    assert data.train_images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert data.class_names == ("airplane", "automobile")


def test_failed_download_is_reported_in_a_sentence(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("no network")

    put_torchvision(monkeypatch, MNIST=fail)
    with pytest.raises(DataError, match="mnist could not be downloaded to .*: no network"):
        load_images("mnist", tmp_path)


# Batches of sequences


class Numbers(ShuffledBatches):
    def test(self):
        return iter(())

    def _train_batch(self, chosen, epoch):
        return epoch, chosen


@pytest.mark.parametrize("batch_size", [1, 4, 10, 16])
def test_shuffled_batches_are_an_order_that_is_a_function_of_seed_and_epoch(batch_size):
    batches = Numbers(10, batch_size, seed=3)
    epochs = [torch.cat([chosen for _, chosen in batches.train(epoch)]).tolist() for epoch in (0, 1, 0)]
    assert len(batches) == len(list(batches.train(0))) == -(-10 // batch_size)
    assert sorted(epochs[0]) == list(range(10)) and epochs[0] == epochs[2] != epochs[1]
    rest = [index for _, chosen in batches.train(0, start=1) for index in chosen.tolist()]
    assert rest == epochs[0][batch_size:]
    assert next(Numbers(10, 10, seed=4).train(0))[1].tolist() != epochs[0]


@pytest.mark.parametrize("make", [NameBatches, TextBatches, SunspotBatches])
def test_a_batch_size_below_1_is_refused(make):
    data = {NameBatches: load_names, TextBatches: load_text, SunspotBatches: load_sunspots}[make]()
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make(data, 0)


def test_name_batches_spell_the_names_and_keep_their_labels():
    data = load_names()
    labels = dict(zip(data.train_names, data.train_labels.tolist(), strict=True))
    packed, targets = next(NameBatches(data, 7, seed=2).train(0))
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)
    for column, length, target in zip(padded.T, lengths.tolist(), targets.tolist(), strict=True):
        assert labels["".join(data.characters[number - 1] for number in column[:length].tolist())] == target


def test_name_test_batches_keep_their_order():
    data = load_names()
    batches = list(NameBatches(data, 7).test(batch_size=500))
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.test_labels)
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(batches[1][0])
    assert torch.equal(padded[: lengths[3], 3], data.encode(data.test_names[503]))


def tiny_text(train: int = 50, test: int = 23) -> TextData:
    return TextData(torch.arange(train), torch.arange(100, 100 + test), tuple(map(chr, range(200))))


def test_text_windows_lie_side_by_side_and_are_followed_by_their_targets():
    batches = TextBatches(tiny_text(), 4, length=7)
    offsets = set()
    for epoch in range(30):
        windows = list(batches.train(epoch))
        characters, targets = (torch.cat(each) for each in zip(*windows, strict=True))
        assert characters.shape == (6, 7) and torch.equal(targets, characters + 1)
        starts = sorted(characters[:, 0].tolist())
        assert starts == list(range(starts[0], 50 - 7, 7))[:6]
        offsets.add(starts[0])
    assert offsets == set(range(7))


def test_text_test_windows_are_longer_and_never_of_the_train_text():
    batches = TextBatches(tiny_text(), 4, length=2)
    characters, targets = (torch.cat(each) for each in zip(*batches.test(), strict=True))
    assert characters.tolist() == [list(range(100, 108)), list(range(108, 116))]
    assert torch.equal(targets, characters + 1)


@pytest.mark.parametrize("length", [0, -1, 12])
def test_a_length_that_the_text_cannot_have_is_refused(length):
    with pytest.raises(ValueError, match=f"length must be from 1 to 11, got {length}"):
        TextBatches(tiny_text(), 2, length=length)


def test_sunspot_windows_are_followed_by_their_targets_and_the_test_years_are_held_out():
    data = load_sunspots()
    batches = SunspotBatches(data, 16, context=5)
    assert batches.scale == float(data.sunspots[:-58].max())
    contexts, targets = (torch.cat(each) for each in zip(*batches.train(0), strict=True))
    assert contexts.shape == (251 - 5, 5, 1) and targets.shape == (251 - 5, 1)
    series = torch.cat([contexts[..., 0], targets], dim=1)
    expected = (data.sunspots[:251] / batches.scale).unfold(0, 6, 1)
    order = batches_order(batches)
    assert torch.equal(series, expected[order])
    ((contexts, targets),) = batches.test()
    assert torch.allclose(targets[:, 0] * batches.scale, data.sunspots[-58:])
    assert torch.equal(contexts[1:, -1], targets[:-1])


def batches_order(batches: SunspotBatches) -> torch.Tensor:
    """The order of epoch 0 for any batches with as many samples and this seed."""
    return torch.cat([chosen for _, chosen in Numbers(batches.train_count, 16, seed=batches.seed).train(0)])


@pytest.mark.parametrize("context", [0, 251])
def test_a_context_that_the_years_cannot_have_is_refused(context):
    with pytest.raises(ValueError, match=f"context must be from 1 to 250, got {context}"):
        SunspotBatches(load_sunspots(), 2, context=context)
