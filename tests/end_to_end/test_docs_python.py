"""The Python examples of docs/python.md run as typed, in a script; the first also from stdin and in a notebook."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.exhaustive import exhaustive
from helpers.images import write_classes

import mimcl.api

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS, LOOP = EXAMPLES[:2]
# As IPython does: the main module has no file, and the program runs beside a thread.
NOTEBOOK = """
import sys, threading, types
sys.modules["__main__"] = main = types.ModuleType("__main__")
threading.Thread(target=threading.Event().wait, daemon=True).start()
exec(compile(open("script.py").read(), "<ipython-input-1>", "exec"), main.__dict__)
"""


def ran(folder: Path, *way: str, **options) -> list[str]:
    """The lines that a Python program printed in a folder with images."""
    write_classes(folder / "imagenet", {"ant": 12, "bee": 12, "cow": 12})
    done = subprocess.run([sys.executable, *way], cwd=folder, capture_output=True, text=True, timeout=280, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_all_examples_run_in_a_script_and_use_every_name(tmp_path):
    (tmp_path / "script.py").write_text("\n".join(EXAMPLES))
    lines = ran(tmp_path, "script.py")
    used = {
        name
        for words in re.findall(r"^from mimcl.api import (.+)$", "\n".join(EXAMPLES), re.M)
        for name in words.split(", ")
    }
    assert used == set(mimcl.api.__all__)
    (distances,) = (line for line in lines if line.startswith("shards/prototypes/default "))
    assert 0 < float(distances.split()[1]) < 1
    assert "29 ['ant', 'bee', 'cow']" in lines
    assert "runs/first True" in lines
    assert "nowhere is not a packed data set (no dataset.json)" in lines
    assert {"both.html", "runs/first/report.html"} <= set(lines)


@pytest.mark.parametrize("way", exhaustive(["-"], ["-c", NOTEBOOK]), ids=["stdin", "notebook"])
def test_the_first_examples_run_without_a_script(tmp_path, way):
    script = f"{COMMANDS}\n{LOOP}print(state['draw'], loss.item())\n"
    (tmp_path / "script.py").write_text(script)
    *_, accuracy, end = ran(tmp_path, *way, input=script if way == ["-"] else "")
    assert 0 <= float(accuracy) <= 1
    assert (tmp_path / "runs/from-python/checkpoints/latest").exists()
    draws, loss = end.split()
    assert int(draws) >= 20 * 29  # epochs of the train images
    assert float(loss) < 100


def test_every_function_and_the_loader_are_in_the_reference():
    assert set(re.findall(r"^::: mimcl\.api\.(\w+)$", PAGE, re.M)) == {
        *(name for name in mimcl.api.__all__ if name.islower()),
        "Loader",
    }
