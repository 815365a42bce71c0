import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run(home, monkeypatch, tmp_path):
    """A copy of the run in the module's `home`, so that no test finds the results of another."""
    monkeypatch.chdir(home)
    return Path(shutil.copytree(home / "run", tmp_path / "run"))
