"""Reads a pickle of nested dicts of numpy arrays, and lets it run nothing."""

from __future__ import annotations

import pickle
from typing import Any, BinaryIO

import numpy as np
from numpy._core.multiarray import _reconstruct  # numpy's pickles name it

from cinesynth.errors import WeightsUnavailable


def load_arrays(stream: BinaryIO) -> dict[str, Any]:
    """Read a pickle of nested dicts of arrays without letting it run anything.

    Raises WeightsUnavailable when it refers to anything but numpy's array constructors, or holds anything else.
    """
    try:
        value = _ArraysOnly(stream).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise WeightsUnavailable(f"{getattr(stream, 'name', 'weights')}: not a plain pickle of arrays: {e}") from e
    _check_arrays(value, "")
    return value


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy's array constructors, under the module paths of numpy 1 and 2, and no other global."""

    _ADMITTED: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}") from None


def _check_arrays(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_arrays(item, f"{path}/{key}")
    elif not (isinstance(value, np.ndarray) and value.dtype == np.float32):
        raise WeightsUnavailable(f"weights hold {type(value).__name__} at {path or '/'}, expected float32 arrays")
