"""Help: at any width nothing is cut, and every option shows its default in one form."""

import os
import re
import subprocess
import sys

import pytest
from helpers.command_tree import COMMANDS, PARAMETERS

from mimcl.cli.config import Config, flatten
from mimcl.cli.help.layout import default_of, row_of, summary_of
from mimcl.cli.options import CONFIG_KEYS
from mimcl.cli.recipes import RECIPES

MIMCL = [sys.executable, "-m", "mimcl.cli.main"]
GROUPS = [name for name, command in COMMANDS.items() if hasattr(command, "commands")]


def run(*words, **environment):
    done = subprocess.run([*MIMCL, *words], capture_output=True, text=True, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def text_of(name: str, monkeypatch, width: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    command = COMMANDS[name]
    context = command.context_class(command, info_name=f"mimcl {name}".strip(), **COMMANDS[""].context_settings)
    return re.sub(r"\x1b\[\d*m", "", command.get_help(context))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_names_are_whole_at_any_width(name, width, monkeypatch):
    text = text_of(name, monkeypatch, width)
    words = set(re.split(r"[\s,]+", text))
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            assert words.issuperset([*parameter.opts, *parameter.secondary_opts])
        for choice in parameter.type_descriptor.choices or ():
            assert re.search(rf"(^|[\s|]){re.escape(str(choice))}($|[\s|])", text)
    assert words.issuperset({"-h", "--help"})
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= max(width, 60)


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS, ids=lambda value: getattr(value, "name", value))
def test_defaults_are_shown_in_one_form(name, parameter):
    assert "(default" not in (parameter.help or ""), "write it as show_default"
    shown = re.findall(r"\[default:\s([^\]]+)\]", row_of(parameter).text)
    if isinstance(parameter.show_default, str):
        assert shown == [parameter.show_default]
    elif parameter.required or parameter.default is None or parameter.default is False or parameter.default == []:
        assert not shown
    else:
        assert len(shown) == 1


@pytest.mark.parametrize(("name", "parameter"), [pair for pair in PARAMETERS if pair[0] in ("train", "plan")])
def test_the_default_of_a_flag_is_that_of_its_key(name, parameter):
    if not (key := CONFIG_KEYS.get(parameter.name)):
        return
    found = {flatten(recipe)[key] for recipe in [Config(), *(make() for make in RECIPES.values())]}
    values = {f"{value:g}" if isinstance(value, float) else str(value) for value in found}
    shown = default_of(parameter)
    if shown == "the recipe's":
        assert len(values) > 1
    elif values == {"None"}:
        assert shown is None or not re.search(r"\d", shown)  # such as "never"
    else:
        shown = {"no-compile": "False", "no-balance": "False"}.get(shown, shown)
        assert values == {shown} or (values == {"auto"} and shown.startswith("auto: "))


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_without_a_command_prints_its_help(name):
    code, out, error = run(*name.split())
    assert (code, out) == (2, "")
    assert error.startswith(f"Usage: mimcl {name}".strip() + " [OPTIONS] COMMAND ...\n")
    assert all(f"\n  {command} " in error for command in COMMANDS[name].commands)
    assert "mimcl: " not in error


@pytest.mark.parametrize("name", GROUPS)
def test_a_command_that_is_not_loaded_has_the_summary_of_its_docstring(name):
    shown = {inner: summary for _, inner, summary in COMMANDS[name].summaries()}
    assert shown == {inner: summary_of(command.help) for inner, command in COMMANDS[name].commands.items()}


@pytest.mark.parametrize("name", ["", "eval", "train", "eval knn"])
def test_h_is_help(name):
    long = run(*name.split(), "--help")
    assert run(*name.split(), "-h") == long
    assert long[0] == 0
    assert long[2] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--curriculum", "prot"], "Invalid value for '--curriculum': 'prot' is not one of 'none', 'proto'"),
        (["plan", "--temp-schedule", "cosin"], "'cosin' is not one of 'cosine', 'linear', 'exponential', 'step'"),
        (["eval", "knn", "x", "--pool", "max"], "'max' is not one of 'mean', 'cls'"),
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["eval", "kn", "x"], "No such command 'kn'. Did you mean 'knn'?"),
        (["train", "--epoch", "3"], "No such option: --epoch (Possible options: --epochs"),
        (["shard"], "Missing argument 'SRC'."),
        (["shard", "a", "b"], "unexpected extra argument"),
        (["masks", "run", "--images", "0"], "Invalid value for '--images': Input should be greater than or equal to 1"),
    ],
)
def test_usage_errors_point_to_the_help(words, message):
    code, out, error = run(*words)
    assert (code, out) == (2, "")
    first, second = error.splitlines()
    assert first.startswith("mimcl: ")
    assert message in first
    assert "Value error" not in first
    command = " ".join(words[: 2 if words[0] == "eval" and words[1] == "knn" else 1])
    command = {"trian": "", "eval": "eval"}.get(command, command)
    assert second == f"Try '{f'mimcl {command}'.strip()} --help' for help."


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_help_has_colours_only_where_they_are_wanted(environment, coloured):
    assert ("\x1b[" in run("train", "--help", **environment)[1]) == coloured


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if len(command.params) > 11])
def test_many_options_are_grouped_by_subject(name):
    grouped = [parameter for parameter in COMMANDS[name].params if parameter.rich_help_panel]
    assert len({parameter.rich_help_panel for parameter in grouped}) >= 2
    rest = [parameter.name for parameter in COMMANDS[name].params if parameter not in grouped]
    assert len(rest) <= 3
