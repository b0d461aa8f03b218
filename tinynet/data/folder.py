"""Images of one's own, one folder for each class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinynet.data.archive import DataError
from tinynet.data.images import ImageData

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TEST_FOLDERS = ("test", "val", "valid")
TEST_PART = 5  # every fifth image is a test image where no folder has them
SIDE = 32  # of images that don't all have one size
LARGEST_SIDE = 256


def load_image_folder(folder: str | Path, side: int | None = None) -> ImageData:
    """Loads images from FOLDER/CLASS/*.png, or FOLDER/train/CLASS and FOLDER/test/CLASS (or val).

    Without a test folder every fifth image of each class is a test image. Images are grey if all of them are, else RGB.
    If they don't have one size, each is cut to its central square and resized to `side`.

    Args:
        folder: where the classes' folders are; their names, sorted, are the class names.
        side: pixels of the sides; None for the images' own size if they all have it, else 32.

    Raises:
        DataError: no such folder, fewer than two classes, a class without images, a file that is no image, images that
            are too large, or Pillow is not installed.
    """
    folder = Path(folder)
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if train_folder == folder:
        test_folder = None
    classes = sorted(path.name for path in train_folder.iterdir() if path.is_dir()) if train_folder.is_dir() else []
    if len(classes) < 2:
        raise DataError(f"{train_folder} must have a folder of images for each of at least two classes")
    train = [(path, label) for label, name in enumerate(classes) for path in _files(train_folder / name)]
    if test_folder is None:
        test = [each for index, each in enumerate(train) if index % TEST_PART == TEST_PART - 1]
        train = [each for index, each in enumerate(train) if index % TEST_PART != TEST_PART - 1]
    else:
        test = [(path, label) for label, name in enumerate(classes) for path in _files(test_folder / name)]
    opened = [read_image(path) for path, _ in (*train, *test)]
    is_grey = all(image.mode == "L" for image in opened)
    sizes = {image.size for image in opened}
    size = sizes.pop() if side is None and len(sizes) == 1 else (side or SIDE, side or SIDE)
    if max(size) > LARGEST_SIDE:
        raise DataError(f"{folder} has images of {size[0]}x{size[1]} pixels: give a side of at most {LARGEST_SIDE}")
    pixels = torch.stack([as_pixels(image, size, channels=1 if is_grey else 3) for image in opened])
    labels = torch.tensor([label for _, label in (*train, *test)], device="cpu")
    count = len(train)
    return ImageData(
        name=folder.resolve().name,
        train_images=pixels[:count],
        train_labels=labels[:count],
        test_images=pixels[count:],
        test_labels=labels[count:],
        class_names=tuple(classes),
        shift=size[0] // 14,
    )


def read_image(path: Path) -> Any:
    """Reads an image file: a Pillow image of mode "L" or "RGB"; what is transparent becomes white.

    Raises:
        DataError: the file is missing or no image, or Pillow is not installed.
    """
    pillow = _import_pillow()
    try:
        with pillow.open(path) as file:
            if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info:
                image = file.convert("RGBA")
                white = pillow.new("RGBA", image.size, "white")
                return pillow.alpha_composite(white, image).convert("RGB")
            return file.convert("L" if file.mode in ("1", "L", "I", "I;16", "F") else "RGB")
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def as_pixels(image: Any, size: tuple[int, int], channels: int) -> Tensor:
    """A Pillow image's central square in another size: uint8 [channels, height, width].

    Args:
        image: of mode "L" or "RGB". One that has the size already is not cut.
        size: (width, height).
        channels: 1 for grey, 3 for RGB.
    """
    if image.size != size:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize(size, resample=2)  # bilinear, antialiased
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array.reshape(size[1], size[0], channels)).permute(2, 0, 1).contiguous()


def _files(folder: Path) -> Iterator[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise DataError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    yield from found


def _import_pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("image files are read by Pillow, which is not installed: pip install pillow") from error
    return Image
