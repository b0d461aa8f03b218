"""Images of one's own: folders, augmentation, prediction and export from a run's checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_close

from tinynet.cli import main
from tinynet.data import Affine, DataError, FlipAndCrop, ImageBatches, ImageData, load_image_folder, load_images
from tinynet.models import build
from tinynet.train import CheckpointError, Classifier, MultiCrop, save_checkpoint
from tinynet.train.classifier import about_classifier

Image = pytest.importorskip("PIL.Image")


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def write_classes(folder: Path, count: int, size: tuple[int, ...] = (9, 9)) -> None:
    for value, name in enumerate(("bright", "dark")):
        for index in range(count):
            write(folder / name / f"{index}.png", np.full(size, 200 - 150 * value + index))


def test_a_folder_per_class_with_every_fifth_image_held_out(tmp_path: Path) -> None:
    write_classes(tmp_path / "mine", 10)
    data = load_image_folder(tmp_path / "mine")
    assert (data.name, data.class_names, data.image_shape) == ("mine", ("bright", "dark"), (1, 9, 9))
    assert data.train_labels.tolist() == [0] * 8 + [1] * 8 and data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.test_images[:, 0, 0, 0].tolist() == [204, 209, 54, 59]
    assert data.baseline == 0.5 and abs(data.background - 128.5) < 4


def test_a_test_folder_and_images_of_different_sizes_and_colors(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 2)
    write_classes(tmp_path / "val", 1, (40, 60))
    left_to_right = np.tile(np.linspace(0, 250, 80), (40, 1))[..., None].repeat(3, 2)
    write(tmp_path / "train" / "dark" / "color.png", left_to_right)
    data = load_image_folder(tmp_path, side=16)
    assert data.image_shape == (3, 16, 16) and len(data.train_labels) == 5 and len(data.test_labels) == 2
    row = data.train_images[-1, 0, 8].float()  # the central half of the columns
    assert_close(row, torch.linspace(62.5, 187.5, 33)[1::2], 0.02)


def test_what_is_no_folder_of_images_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder of images for each of at least two classes"):
        load_image_folder(tmp_path)
    write_classes(tmp_path, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no images"):
        load_image_folder(tmp_path)
    (tmp_path / "empty" / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        load_image_folder(tmp_path)


def test_affine_is_the_identity_for_zeros_and_a_rotation_turns() -> None:
    images = torch.rand(3, 2, 8, 8)
    drawn = torch.zeros(3, 6)
    assert_close(Affine()(images, drawn), images, 1e-5)
    drawn[:, 0] = 1.0
    turned = Affine(rotation=90.0)(images, drawn)
    assert_close(turned, images.rot90(1, (2, 3)), 1e-5)
    drawn = torch.zeros(3, 6)
    drawn[:, 4] = 1.0
    shifted = Affine(shift=2.0)(images, drawn)
    assert_close(shifted[..., :-2], images[..., 2:], 1e-5)
    assert not shifted[..., -2:].any()


def test_affine_draws_within_its_ranges_and_by_seed_and_epoch_alone() -> None:
    data = load_images("digits")
    batches = [ImageBatches(data, 500, seed=3, augmentation=Affine()) for _ in range(2)]
    first, second = ([images for images, _ in each.train(4)] for each in batches)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(next(iter(batches[0].train(4, start=2)))[0], first[2])
    drawn = Affine().draw(1000, 0, torch.Generator().manual_seed(0))
    assert drawn.shape == (1000, 6) and drawn.abs().max() <= 1 and drawn.std() > 0.5


def test_flips_alternate_and_sides_are_reflected() -> None:
    augment = FlipAndCrop(2)
    generator = torch.Generator().manual_seed(0)
    flips = [augment.draw(50, epoch, generator)[:, 2] for epoch in range(3)]
    assert torch.equal(flips[0], flips[2]) and torch.equal(flips[0], 1 - flips[1]) and 0 < flips[0].sum() < 50
    image = torch.arange(5.0).expand(1, 1, 5, 5)
    assert augment(image, torch.tensor([[0, 2, 0]]))[0, 0, 0].tolist() == [2, 1, 0, 1, 2]
    assert augment(image, torch.tensor([[0, 0, 1]]))[0, 0, 0].tolist() == [4, 3, 2, 1, 0]


def test_multi_crop_is_a_weighted_mean_of_shifted_copies() -> None:
    class Corner(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, 0, 1, 1:3]

    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = 0.5 * images[0, 0, 1, 1:3] + 0.25 * images[0, 0, 0, 0:2] + 0.25 * images[0, 0, 2, 2:4]
    assert torch.equal(MultiCrop(Corner(), mirror=False)(images)[0], expected)
    mirrored = MultiCrop(Corner(), mirror=True)(images)[0]
    assert math.isclose(mirrored[0], mirrored[1], rel_tol=1e-6)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, ImageData]:
    """A checkpoint of a classifier of digits, as the training program writes it."""
    torch.manual_seed(0)
    data = load_images("digits")
    model = build("mlp", image_shape=data.image_shape, classes=data.classes)
    save_checkpoint(tmp_path / "checkpoint.pt", {"model": model.state_dict(), "about": about_classifier("mlp", data)})
    return tmp_path, data


def test_predictions_of_images_of_any_size_color_and_sign(
    run: tuple[Path, ImageData], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = run
    digit = data.test_images[0, 0].numpy()
    write(folder / "same.png", digit)
    write(folder / "inverted.png", 255 - digit)
    write(folder / "large.png", digit.repeat(5, 0).repeat(5, 1)[..., None].repeat(3, 2))
    classifier = Classifier.load(folder)
    pixels = [classifier.read(folder / f"{name}.png") for name in ("same", "inverted", "large")]
    assert [inverted for _, inverted in pixels] == [False, True, False]
    assert all(torch.equal(image, data.test_images[0]) for image, _ in pixels[:2])
    assert (pixels[2][0].float() - data.test_images[0].float()).abs().mean() < 20
    normalized = next(ImageBatches(data, 8).test())[0][:1]
    expected = classifier.model(normalized).softmax(1)
    torch.testing.assert_close(classifier.probabilities(pixels[0][0][None]), expected)

    assert main(["predict", str(folder), str(folder / "same.png"), str(folder / "inverted.png"), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    best = expected[0].topk(2)
    classes = ", ".join(
        f"{index} {100 * value:.1f} %" for value, index in zip(*map(torch.Tensor.tolist, best), strict=True)
    )
    assert lines == [f"{folder}/same.png: {classes}", f"{folder}/inverted.png: {classes} (inverted)"]


def test_export_to_safetensors(run: tuple[Path, ImageData], capsys: pytest.CaptureFixture[str]) -> None:
    safetensors = pytest.importorskip("safetensors")
    folder, _ = run
    assert main(["export", str(folder), "--to", "safetensors"]) == 0
    assert capsys.readouterr().out == f"{folder}/model.safetensors\n"
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == list("0123456789")
        for name, weight in Classifier.load(folder).model.state_dict().items():
            assert torch.equal(file.get_tensor(name), weight)


@pytest.mark.parametrize("command", [["predict", "RUN", "nothing.png"], ["export", "nowhere", "--to", "safetensors"]])
def test_what_is_missing_gets_a_sentence(
    command: list[str], run: tuple[Path, ImageData], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = run
    with pytest.raises(SystemExit) as error:
        main([str(folder) if each == "RUN" else each for each in command])
    assert error.value.code == 2
    assert "nothing.png cannot be read" in (message := capsys.readouterr().err) or "no checkpoint nowhere" in message


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", {"model": {}, "about": {}})
    with pytest.raises(CheckpointError, match="is not a checkpoint of an image classifier"):
        Classifier.load(tmp_path)
