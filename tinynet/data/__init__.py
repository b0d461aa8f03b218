"""Data sets, included in tinynet or downloaded by torchvision, and their batches."""

from tinynet.data.archive import DataError
from tinynet.data.augmentation import Affine, Augmentation, FlipAndCrop, Shift, shift_images
from tinynet.data.batches import ImageBatches, ShuffledBatches
from tinynet.data.folder import load_image_folder
from tinynet.data.images import IMAGE_DATA, ImageData, load_images
from tinynet.data.names import NameBatches, NameData, load_names
from tinynet.data.sunspots import SunspotBatches, SunspotData, load_sunspots
from tinynet.data.text import TextBatches, TextData, load_text

__all__ = [
    "IMAGE_DATA",
    "Affine",
    "Augmentation",
    "DataError",
    "FlipAndCrop",
    "ImageBatches",
    "ImageData",
    "NameBatches",
    "NameData",
    "Shift",
    "ShuffledBatches",
    "SunspotBatches",
    "SunspotData",
    "TextBatches",
    "TextData",
    "load_image_folder",
    "load_images",
    "load_names",
    "load_sunspots",
    "load_text",
    "shift_images",
]
