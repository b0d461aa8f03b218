"""Data sets that come with tinynet or through torchvision, and their batches."""

from tinynet.data.archive import DataError
from tinynet.data.batches import ImageBatches, shift_images
from tinynet.data.images import IMAGE_DATA, ImageData, load_images

__all__ = ["IMAGE_DATA", "DataError", "ImageBatches", "ImageData", "load_images", "shift_images"]
