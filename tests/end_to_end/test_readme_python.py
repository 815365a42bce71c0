"""The README's Python example runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.images import write_classes

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs(tmp_path):
    section = README.read_text().split("\n## From Python\n")[1]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    write_classes(tmp_path / "imagenet", {"ant": 12, "bee": 12, "cow": 12})
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (distances,) = (line for line in lines if line.startswith("shards/prototypes/default "))
    assert 0 < float(distances.split()[1]) < 1
    assert 0 <= float(lines[-1]) <= 1
    assert (tmp_path / "runs/from-python/checkpoints/latest").exists()
