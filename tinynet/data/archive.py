"""The data files shipped in the wheel: numpy archives, whose fingerprints are checked when they are read."""

import hashlib
from pathlib import Path

import numpy as np

SHIPPED = Path(__file__).parent / "shipped"

# fingerprint() of each shipped file, as printed by rebuild.py, which creates the files.
FINGERPRINTS = {
    "digits": "f3414dfe4a5a24219dd0b37eed958eba904c8d9be48d45a63579df12b17ddb58",
    "mnist5k": "394451ef2fd036552c263b7c4de8fb628f4e90572a52801cd6a2b2650d9eecde",
    "names": "5cddfadac217226a398bc641f52521ec43bbcdc673c6995ff49b0e26f96302e5",
    "sunspots": "84372312ca75b190b15cd2c81ea9d92ee9784f9386560f07c6dcc0d7d08ed9e5",
    "text": "1c00fd36db8fd210c9e447a128c12b9f7f975f811706b7cf3733fddd32965c6f",
}


class DataError(ValueError):
    """A data set is unknown, missing or damaged, or is not the expected one."""


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the arrays: their names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def read_archive(name: str, path: Path | None = None) -> dict[str, np.ndarray]:
    """Reads a shipped data file.

    Args:
        name: the data set's name, a key of `FINGERPRINTS`.
        path: the file to read; None for the one shipped with tinynet.

    Returns:
        The arrays of the file by name.

    Raises:
        DataError: the file is missing, cannot be read, or contains other data.
    """
    path = path or SHIPPED / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise DataError(f"the data file {path} is missing: reinstall tinynet") from None
    except Exception as error:  # numpy, zipfile and zlib raise various errors
        raise DataError(f"the data file {path} cannot be read: it is truncated, or not a numpy archive") from error
    if fingerprint(arrays) != FINGERPRINTS[name]:
        raise DataError(f"the data file {path} is not the {name} data that tinynet ships: reinstall tinynet")
    return arrays
