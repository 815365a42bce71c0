"""The commands of the documentation: the parser takes each of them, and those of ```console blocks run as typed."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_tree import COMMANDS, parse
from helpers.doc_pages import PAGES, ROOT, blocks, mimcl_commands, starts_with, to_run
from helpers.images import write_train_val
from helpers.typed import mimcl

EVERYWHERE = {**PAGES, "README.md": ROOT / "README.md", "AGENTS.md": ROOT / "AGENTS.md"}
TO_RUN = [name for name, path in EVERYWHERE.items() if to_run(path.read_text("utf-8"))]
TEXT = """
`mimcl keys lr` and

    mimcl verify a  # comment

```sh
A=1 torchrun --no-python mimcl \\
    shard b && mimcl train
```
```console
$ mimcl inspect 'c d' | head
mimcl output
```
```text
mimcl no
```
"""
PLACEHOLDERS = {"COMMAND", "PROTOCOL", "..."}
ANSWERED_BY_THE_PARSER = {"--help", "-h", "--version", "--install-completion", "--show-completion"}


def is_name(words: list[str]) -> bool:
    """Whether a command is only named, stands for others, or ends while it is parsed."""
    return " ".join(words) in COMMANDS or bool((PLACEHOLDERS | ANSWERED_BY_THE_PARSER) & {*words})


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_parser_takes_every_command(name):
    for words in mimcl_commands(EVERYWHERE[name].read_text("utf-8")):
        if not is_name(words):
            try:
                parse(words)
            except Exception as error:
                pytest.fail(f"mimcl {' '.join(words)}: {error}")


def test_commands_are_found():
    assert mimcl_commands(TEXT) == [["shard", "b"], ["train"], ["inspect", "c d"], ["verify", "a"], ["keys", "lr"]]
    assert to_run(TEXT) == ["mimcl inspect 'c d' | head"]
    assert [language for language, _ in blocks(TEXT)] == ["sh", "console", "text"]


def test_most_pages_have_commands():
    assert len(TO_RUN) >= 5
    assert sum(len(mimcl_commands(path.read_text("utf-8"))) for path in PAGES.values()) > 60


class Prepared:
    """What pages start with: each made once, in one folder, and copied from there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def copy(self, name: str, folder: Path) -> None:
        """Put imagenet, shards, runs/NAME or demo into `folder`."""
        source = "runs/made" if name.startswith("runs/") else name
        if not (self._folder / source).exists():
            self._make(source)
        shutil.copytree(self._folder / source, folder / name)

    def _make(self, name: str) -> None:
        if name == "imagenet":
            classes = ("ant", "bee", "cow")
            write_train_val(self._folder / name, dict.fromkeys(classes, 24), dict.fromkeys(classes, 6))
        elif name == "shards":
            self._pack("shards")
        elif name == "runs/made":
            self._train("shards", name)
        elif name == "demo":
            self._pack("demo/shards")
            self._train("demo/shards", "demo/proto")
        else:
            pytest.fail(f"nothing makes {name}; choose imagenet, shards, runs/NAME or demo")

    def _pack(self, shards: str) -> None:
        if not (self._folder / "imagenet").exists():
            self._make("imagenet")
        self._run("shard", "imagenet", "--out", shards)
        self._run("prototypes", "build", "--data", shards, "--features", "pixels", "--k", "3")

    def _train(self, shards: str, run: str) -> None:
        if not (self._folder / shards).exists():
            self._pack(shards)
        options = ["--recipe", "cpu_small", "--curriculum", "proto", "--epochs", "2", "--batch-size", "16"]
        self._run("train", *options, "--data", shards, "--out", run, "--set", "trainer.checkpoint_every_steps=3")

    def _run(self, *words: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            assert mimcl(patch, self._folder, *words) == 0, words


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TO_RUN)
def test_commands_run_as_typed(name, prepared, tmp_path, monkeypatch, capsys):
    text = EVERYWHERE[name].read_text("utf-8")
    folder = tmp_path / "reader"
    folder.mkdir()
    for start in starts_with(text):
        prepared.copy(start, folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # `--features auto` does not download, so that results never vary
    for line in to_run(text):
        words = shlex.split(line)
        if words[0] == "mimcl" and not {*line} & {*"|&;<>$*"}:
            code = mimcl(monkeypatch, folder, *words[1:])
        else:
            code = in_a_shell(line, folder, tmp_path / "bin")
        assert code == 0, f"{line}\n{capsys.readouterr()}"


def in_a_shell(line: str, folder: Path, programs: Path) -> int:
    """Run a line as a shell does that finds this mimcl."""
    program = programs / "mimcl"
    if not program.exists():
        programs.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mimcl.cli.main "$@"\n')
        program.chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(line, shell=True, cwd=folder, env={**os.environ, "PATH": path}, timeout=120).returncode
