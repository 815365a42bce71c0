"""The Python examples of README and docs/python.md run as typed; README's in three ways to run Python."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.images import write_classes

import mimcl.api

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# As IPython does: the main module has no file, and the program runs beside a thread.
NOTEBOOK = """
import sys, threading, types
sys.modules["__main__"] = main = types.ModuleType("__main__")
threading.Thread(target=threading.Event().wait, daemon=True).start()
exec(compile(open("script.py").read(), "<ipython-input-1>", "exec"), main.__dict__)
"""
ONE_BY_ONE = """
import json
for number, example in enumerate(json.load(open("examples.json")), 1):
    exec(compile(example, f"example {number}", "exec"), {"__name__": "__main__"})
"""


def examples(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def ran(folder: Path, *way: str, **options) -> list[str]:
    """The lines that a Python program printed in a folder with images."""
    write_classes(folder / "imagenet", {"ant": 12, "bee": 12, "cow": 12})
    done = subprocess.run([sys.executable, *way], cwd=folder, capture_output=True, text=True, timeout=280, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("way", [["script.py"], ["-"], ["-c", NOTEBOOK]], ids=["script", "stdin", "notebook"])
def test_the_examples_of_the_readme_run(tmp_path, way):
    commands, loop = examples((ROOT / "README.md").read_text().split("\n## From Python\n")[1])
    script = f"{commands}\n{loop}print(state['draw'], loss.item())\n"
    (tmp_path / "script.py").write_text(script)
    *_, accuracy, end = lines = ran(tmp_path, *way, input=script if way == ["-"] else "")
    (distances,) = (line for line in lines if line.startswith("shards/prototypes/default "))
    assert 0 < float(distances.split()[1]) < 1
    assert 0 <= float(accuracy) <= 1
    assert (tmp_path / "runs/from-python/checkpoints/latest").exists()
    draws, loss = end.split()
    assert int(draws) >= 20 * 29  # epochs of the train images
    assert float(loss) < 100


def test_the_examples_of_the_page_run_and_use_every_name(tmp_path):
    typed = examples((ROOT / "docs" / "python.md").read_text())
    (tmp_path / "examples.json").write_text(json.dumps(typed))
    lines = ran(tmp_path, "-c", ONE_BY_ONE)
    used = {
        name
        for words in re.findall(r"^from mimcl.api import (.+)$", "\n".join(typed), re.M)
        for name in words.split(", ")
    }
    assert used == set(mimcl.api.__all__)
    assert "29 ['ant', 'bee', 'cow']" in lines
    assert "runs/first True" in lines
    assert "nowhere is not a packed data set (no dataset.json)" in lines
    assert {"both.html", "runs/first/report.html"} <= set(lines)
