"""Natural keys: whose an example is, such as a writer, a hospital or a role. A simulation makes clients of them."""

import numpy as np
import numpy.typing as npt

from models.errors import DataError

Keys = npt.NDArray[np.int64] | npt.NDArray[np.str_]
"""One key an example, (examples,)."""


def require_key(subject: str, key: str | None) -> str:
    """Return the name of the column or array of keys. Raises `DataError` where the data source names none."""
    if key is None:
        raise DataError(
            f"{subject}: key must be named for a partition by key, got none. Add ,key=NAME to the data source."
        )
    return key
