"""Suggested commands can be pasted into a shell and run, and act on the data that they are about."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_tree import COMMANDS
from helpers.exhaustive import exhaustive
from helpers.images import write_train_val
from helpers.typed import mimcl

from mimcl.cli.suggest import (
    advised,
    after_evaluation,
    after_training,
    command,
    list_damage,
    prototypes_build,
    quote,
    unless_default,
)
from mimcl.pipeline.files import DataError, NotPackedError

# What bash reads `mimcl` as.
SHELL = f'mimcl() {{ {shlex.quote(sys.executable)} -m mimcl.cli.main "$@"; }}\n'
PATHS = [
    "plain",
    "a b",
    "it's",
    '$HOME `x` "y"',
    "é 日",
    "a\nb\t\x1b[2J",
    "back\\slash'\n",
    os.fsdecode(b"raw\xe9 0"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_shell_reads_what_was_quoted(path, encoding):
    code = (
        "import sys; from mimcl.cli import suggest, screen; screen.accept_any_text(); print(suggest.quote(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", code, path]
    printed = subprocess.run(command, capture_output=True, env=environment, check=True).stdout
    assert printed.count(b"\n") == 1
    assert b"\x1b" not in printed
    word = printed.decode(encoding).strip()
    read = subprocess.run(["bash", "-c", f"printf '%s' {word}"], capture_output=True, check=True).stdout
    assert read == os.fsencode(path)


def test_options_that_are_none_are_left_out():
    assert command("train", data=None, out="a b") == "mimcl train --out 'a b'"
    assert command("report", "runs/x") == "mimcl report runs/x"
    assert command("prototypes build", data=unless_default("shards")) == "mimcl prototypes build"
    assert command("prototypes build", data=unless_default("shards2")) == "mimcl prototypes build --data shards2"
    assert quote("") == "''"


def test_flags_lists_and_dashes():
    assert command("train", out="a b", resume=True, init=False) == "mimcl train --out 'a b' --resume"
    assert command("train", set=["a=1", "b='x'"]) == """mimcl train --set a=1 --set 'b='"'"'x'"'"''"""
    assert command("shard", "SRC", short_side=256) == "mimcl shard SRC --short-side 256"
    assert command("report", "-run", out="-page") == "mimcl report ./-run --out=-page"


def test_what_is_missing_is_packed_where_it_was_looked_for():
    assert advised(DataError("no")) == "no"
    for root, expected in (
        ("shards", "`mimcl shard SRC`"),
        ("x y", "`mimcl shard SRC --out 'x y'`"),
        ("s3://a/b", "`mimcl shard SRC --out FOLDER` and upload it"),
    ):
        assert advised(NotPackedError(root)) == (
            f"{root} is not a packed data set (no dataset.json); make one with {expected}"
        )
    assert list_damage("x y") == "`mimcl verify 'x y' --decode` lists what is wrong"
    assert "`mimcl verify` of a local copy" in list_damage("s3://a/b")


def test_after_an_evaluation_data_are_given_again(tmp_path):
    assert after_evaluation("knn", Path("r x"), Path("r x"), "d e") == "mimcl eval linear 'r x' --data 'd e'"
    assert after_evaluation("linear", Path("w.pth"), Path("evaluations/w-1"), None) is None
    (tmp_path / "config.yaml").touch()
    assert after_evaluation("linear", tmp_path / "checkpoints/1", tmp_path, None) == command("report", tmp_path)


def test_after_training_comes_an_evaluation_that_the_images_allow():
    assert after_training(Path("r x"), True) == "mimcl eval knn 'r x'"
    assert after_training(Path("r x"), False) == "mimcl eval rank 'r x'"


# Beside docstrings, help and these, commands are written by `suggest` alone, which quotes and completes them.
ALLOWED = {
    "options.py": "Set any value; `mimcl keys` lists the keys.",  # help
    "classifier_card.py": "as `mimcl predict` does",
}


def test_no_other_module_writes_commands_as_text():
    root = Path(__file__).parents[2]
    names = "|".join(re.escape(name) for name in COMMANDS[""].commands)
    written = re.compile(rf"\bmimcl ({names})\b|`mimcl $")
    found = {}
    for path in (path for wing in ("cli", "model", "pipeline", "curriculum") for path in (root / wing).rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            if node.body and isinstance(node.body[0], ast.Expr)
        }
        documentation |= {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.keyword) and node.arg in ("help", "epilog")
        }
        documentation |= {
            id(argument)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Deferred"
            for argument in node.args
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)) or id(node) in documentation:
                continue
            if written.search(node.value) and ALLOWED.get(path.name, "\0") not in node.value:
                found[str(path.relative_to(root))] = node.value
    assert found.keys() == {"cli/suggest.py"}  # `mimcl verify` of a copy whose place is not known


def bash(line, folder, **environment):
    done = subprocess.run(
        ["bash", "-c", SHELL + line],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        cwd=folder,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout, done.stderr


def suggested(text):
    """Return the last command in the text: after `next:` or `with:`, or in backquotes."""
    return re.findall(r"(?:next: |with: |`)(mimcl [^`\n]*)", text)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [os.fsdecode(b"raw\xe9\n"), *exhaustive("a b", "it's é")])
def test_suggested_commands_run(tmp_path, name):
    write_train_val(tmp_path / "src", {"a": 12, "b": 12}, {"a": 3, "b": 3})
    out, run = quote(f"{name}/shards"), quote(f"{name}/run")
    short = "--recipe cpu_small --set data.batch_size=8 --set data.image_size=32 --epochs 0.7"
    code, _, errors = bash(f"mimcl plan --data {out}", tmp_path)
    assert code == 1
    code, text, errors = bash(suggested(errors).replace("SRC", "src"), tmp_path)
    assert code == 0, errors
    packed = suggested(text)

    code, _, errors = bash(f"mimcl train --curriculum proto --data {out} --out {run} {short}", tmp_path)
    assert code == 1
    assert suggested(errors) == packed
    code, text, _ = bash(f"mimcl inspect {out}", tmp_path)
    assert suggested(text) == packed

    code, text, errors = bash(f"{packed} --features pixels --k 2", tmp_path)
    assert code == 0, errors
    code, text, errors = bash(f"{suggested(text)} --out {run} {short}", tmp_path)
    assert code == 0, errors
    for name_of in ("eval knn", "eval linear", "report"):
        following = suggested(text)
        assert following == f"mimcl {name_of} {run}"
        if name != "a b":  # once is enough to run them
            break
        code, text, errors = bash(following, tmp_path)
        assert code == 0, errors

    (tmp_path / name / "shards" / "prototypes" / "default" / "train.arrow").write_bytes(b"damaged")
    code, _, errors = bash(f"mimcl plan --curriculum proto --data {out} {short}", tmp_path)
    assert code == 1
    code, _, errors = bash(f"{suggested(errors)} --features pixels --k 2", tmp_path)
    assert code == 0, errors


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_set_of_another_name_is_in_the_suggestion(tmp_path):
    write_train_val(tmp_path / "src", {"a": 12, "b": 12}, {"a": 3, "b": 3})
    code, _, errors = bash("mimcl shard src --out 'x y'", tmp_path)
    assert code == 0, errors
    asked = "mimcl plan --curriculum proto --data 'x y' --set curriculum.prototypes=mine --recipe cpu_small"
    code, _, errors = bash(asked, tmp_path)
    assert code == 1
    assert suggested(errors) == "mimcl prototypes build --data 'x y' --name mine"
    assert bash(f"{suggested(errors)} --features pixels --k 2", tmp_path)[0] == 0
    assert bash(f"{asked} --set data.batch_size=8", tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("data", "prototypes", "expected"),
    [
        ("shards", "default", "mimcl prototypes build"),
        ("my data", "default", "mimcl prototypes build --data 'my data'"),
        ("d", "dino", "mimcl prototypes build --data d --name dino"),
        ("d", "sets/mine", "mimcl prototypes build --data d --out sets/mine"),
    ],
)
def test_the_command_that_builds_a_prototype_set(data, prototypes, expected):
    assert prototypes_build(data, prototypes) == expected


def test_a_missing_set_is_to_be_built_for_the_data_that_was_given(tmp_path, monkeypatch, capfd):
    write_train_val(tmp_path / "src", {"a": 2, "b": 2}, {})
    assert mimcl(monkeypatch, tmp_path, "shard", "src/train", "--out", "my data", "--workers", "1") == 0
    words = ["--prototypes", "none"]
    for arguments in (["repack", "my data", "--out", "new"], ["plan", "--data", "my data", "--curriculum", "proto"]):
        capfd.readouterr()
        assert mimcl(monkeypatch, tmp_path, *arguments, *words) == 1
        assert "run `mimcl prototypes build --data 'my data' --name none`" in capfd.readouterr().err
