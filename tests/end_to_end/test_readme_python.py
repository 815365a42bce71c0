"""The README's Python example runs as typed: in a script, from standard input, and in a notebook."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.images import write_classes

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"
# As IPython does: the main module has no file, and the program runs beside a thread.
NOTEBOOK = """
import sys, threading, types
sys.modules["__main__"] = main = types.ModuleType("__main__")
threading.Thread(target=threading.Event().wait, daemon=True).start()
exec(compile(open("script.py").read(), "<ipython-input-1>", "exec"), main.__dict__)
"""


@pytest.mark.parametrize("way", [["script.py"], ["-"], ["-c", NOTEBOOK]], ids=["script", "stdin", "notebook"])
def test_the_example_runs(tmp_path, way):
    section = README.read_text().split("\n## From Python\n")[1]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    (tmp_path / "script.py").write_text(example)
    write_classes(tmp_path / "imagenet", {"ant": 12, "bee": 12, "cow": 12})
    done = subprocess.run(
        [sys.executable, *way],
        input=example if way == ["-"] else "",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (distances,) = (line for line in lines if line.startswith("shards/prototypes/default "))
    assert 0 < float(distances.split()[1]) < 1
    assert 0 <= float(lines[-1]) <= 1
    assert (tmp_path / "runs/from-python/checkpoints/latest").exists()
