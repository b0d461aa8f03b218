"""Checks of the models' sizes."""


def check_image_shape(image_shape: tuple[int, int, int], smallest_side: int) -> None:
    """Raises a ValueError unless image_shape is (C, H, W) with C >= 1 and H, W >= smallest_side."""
    if len(image_shape) != 3 or image_shape[0] < 1 or min(image_shape[1:]) < smallest_side:
        raise ValueError(
            f"image_shape must be (channels, height, width) with at least 1 channel and {smallest_side} "
            f"pixel(s) per side, got {tuple(image_shape)}"
        )


def check_classes(classes: int) -> None:
    """Raises a ValueError unless there is at least one class."""
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}")


def check_sizes(**sizes: int) -> None:
    """Raises a ValueError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
