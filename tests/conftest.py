"""Options and fixtures that every test may use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# As torchrun does for its processes. The number of threads decides the order of sums, and so bits that tests compare;
# set here, since one server starts the processes of all tests and has the environment of the first that asked for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# cuBLAS and torch look at it once a process, when the first test multiplies on a GPU; with it results repeat.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# For this process and all that it starts: nothing of a test is remembered in the user's own folder.
_cache = tempfile.TemporaryDirectory(prefix="mimcl-cache-")
os.environ["MIMCL_CACHE"] = _cache.name

_BESIDE_THE_REPOSITORY = Path(__file__).parents[2] / "shared" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(os.environ.get("MIMCL_GOLDEN", _BESIDE_THE_REPOSITORY)),
        help="folder with the reference implementations' arrays (default: MIMCL_GOLDEN, else ../shared/golden)",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], dict[str, np.ndarray]]:
    """Reads one .npz of the reference implementations; the test skips where the folder is missing."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = request.config.getoption("--golden") / name
        if not path.exists():
            pytest.skip(f"{name} is not here: give its folder with --golden or MIMCL_GOLDEN")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    return load
