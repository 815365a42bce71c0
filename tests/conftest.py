"""Options and fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest

# As torchrun sets it. The number of threads determines the order of sums, and so the bits that tests compare.
# Set here because one forkserver starts the processes of all tests, with the environment of the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Makes results on a GPU reproducible; cuBLAS and torch read it once, at the first multiplication of the process.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Workers of pytest-xdist have it; commands that tests start ask their own terminal for its width.
os.environ.pop("COLUMNS", None)

# For this process and all that it starts: tests leave nothing in the user's own cache.
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: with quick ones at the end, all workers end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Exempt what exists by now from garbage collection, which takes most of a second with thousands of tests."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Delete the folders of a module's fixtures when its tests end: all together they take many gigabytes.

    pytest itself deletes them when all tests have ended. The folders of a failed module are kept.
    """
    if fixturedef.scope != "module":
        return (yield)
    base = request.getfixturevalue("tmp_path_factory").getbasetemp()
    before, failures = set(base.iterdir()), request.session.testsfailed
    value = yield

    def delete() -> None:
        if request.session.testsfailed == failures:
            for folder in made:
                shutil.rmtree(folder, ignore_errors=True)

    made = set(base.iterdir()) - before
    request.node.addfinalizer(delete)  # before pytest adds the fixture's own, so that it runs after it
    return value


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], dict[str, np.ndarray]]:
    """Load an .npz of the reference implementations; the test is skipped if it is missing."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = request.config.getoption("--golden") / name
        if not path.exists():
            pytest.skip(f"{name} not found; give its folder with --golden or MIMCL_GOLDEN")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    return load
