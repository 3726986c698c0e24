"""Where the development data sets are: ``CROSSROADS_DATA``, else ``../shared/data``.

The second is beside the checkout. Nothing in the product needs these folders. Loaders and tests
that read them call ``data_folder``, whose error names the folder that is missing and the
variable to set.
"""

from __future__ import annotations

import os
from pathlib import Path

from crossroads.core.errors import UnavailableError

VARIABLE = "CROSSROADS_DATA"


def data_root() -> Path | None:
    """Return the folder that holds the data sets, or None where there is none.

    The variable wins even when it names a folder that does not exist, so that a typing error is
    reported instead of hidden.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    beside_checkout = Path(__file__).resolve().parents[4] / "shared" / "data"
    return beside_checkout if beside_checkout.is_dir() else None


def data_folder(name: str) -> Path:
    """Return the folder of one data set. Raises UnavailableError with the remedy."""
    root = data_root()
    if root is None:
        raise UnavailableError(
            f"data set {name!r} is not on this machine; set {VARIABLE} to a folder holding {name}/"
        )
    folder = root / name
    if not folder.is_dir():
        raise UnavailableError(
            f"data set {name!r}: no folder {str(folder)!r}; "
            f"set {VARIABLE} to a folder holding {name}/"
        )
    return folder
