"""Mark values of a parametrised test as exhaustive: CI skips them, `sh tools/test.sh --all` does not."""

from typing import Any

import pytest


def exhaustive(*values: Any) -> list:
    """Return the values as marked parameters; a tuple is the values of several arguments.

    >>> @pytest.mark.parametrize("size", [1, *exhaustive(2, 3)])
    """
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.exhaustive)
        for value in values
    ]
