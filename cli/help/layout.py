"""The help of a command as text: parameters by subject, at any width, no name cut."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

_WIDEST = 110  # columns; longer lines are hard to read
_NO_BREAK = "\u00a0"  # a space at which no line is broken
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


class Row(NamedTuple):
    """A parameter or command: its names, what it takes, and what it is for."""

    names: str
    value: str
    text: str

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.names, self.value)))


@runtime_checkable
class Summarised(Protocol):
    """A group of commands."""

    def summaries(self) -> list[tuple[str, str, str]]:
        """Return heading, name and summary of each command."""
        ...


def help_text(command: TyperCommand | TyperGroup, context: Any) -> str:
    """Return the help for the width of the terminal (or COLUMNS, or 80); styled, which `typer.echo` can remove."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    paragraphs = [usage(command, context), *inspect.cleandoc(command.help or "").split("\n\n")]
    end = [_wrap(command.epilog, width)] if command.epilog else []
    texts = [_wrap(text, width) for text in paragraphs]
    return "\n\n".join([*texts, *listing(sections(command, context), width), *end])


def usage(command: TyperCommand | TyperGroup, context: Any) -> str:
    """Return the line that shows how the command is called."""
    words = [_usage_name(item) for item in _parameters(command, context) if isinstance(item, TyperArgument)]
    if isinstance(command, TyperGroup):
        words.append("COMMAND ...")
    return " ".join(["Usage:", context.command_path, "[OPTIONS]", *words])


def sections(command: TyperCommand | TyperGroup, context: Any) -> dict[str, list[Row]]:
    """Return the commands of a group and the parameters, by subject."""
    found: dict[str, list[Row]] = {}
    if isinstance(command, Summarised):
        for title, name, summary in command.summaries():
            found.setdefault(title, []).append(Row(name, "", summary))
    for parameter in _parameters(command, context):
        title = parameter.rich_help_panel or ("Arguments" if isinstance(parameter, TyperArgument) else "Options")
        found.setdefault(title, []).append(row_of(parameter))
    return found


def _parameters(command: TyperCommand | TyperGroup, context: Any) -> list[TyperArgument | TyperOption]:
    return [
        parameter
        for parameter in command.get_params(context)
        if isinstance(parameter, TyperArgument | TyperOption) and not parameter.hidden
    ]


def listing(rows_by_title: Mapping[str, Sequence[Row]], width: int) -> list[str]:
    """Return a block of lines for each section: its title, and its rows with all texts in one column."""
    column = _text_column(rows_by_title.values(), width)
    return [
        "\n".join([typer.style(title, bold=True), *(line for row in rows for line in _lines(row, column, width))])
        for title, rows in rows_by_title.items()
    ]


def row_of(parameter: TyperArgument | TyperOption) -> Row:
    """Return the names of a parameter, what it takes, and its help with the range of its values and its default."""
    if isinstance(parameter, TyperArgument):
        return Row("", _metavar(parameter), _description(parameter))
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.secondary_opts:
        names += f" / {', '.join(parameter.secondary_opts)}"
    return Row(names, "" if parameter.is_flag else _metavar(parameter), _description(parameter))


def default_of(parameter: TyperArgument | TyperOption) -> str | None:
    """Return the default as help shows it: `show_default`, where that is text. A flag is off by default."""
    default = parameter.default
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if default is None or default == [] or parameter.required:
        return None
    if isinstance(default, bool):
        names = parameter.opts if default else parameter.secondary_opts
        return names[0].lstrip("-") if names else None
    return f"{default:g}" if isinstance(default, float) else str(default)


def _description(parameter: TyperArgument | TyperOption) -> str:
    limits = {
        (True, True): f"{parameter.min} to {parameter.max}",
        (True, False): f"at least {parameter.min}",
        (False, True): f"at most {parameter.max}",
    }.get((parameter.min is not None, parameter.max is not None))
    return with_notes(parameter.help, limits, "required" if parameter.required else None, default=default_of(parameter))


def with_notes(text: str | None, *notes: str | None, **named: str | None) -> str:
    """Append notes in brackets, such as [default: 3], without those that are None."""
    given = [note for note in notes if note]
    for name, note in named.items():
        if note:
            space = _NO_BREAK if len(note) < 20 else " "
            given.append(f"{name}:{space}{note}")
    return " ".join(filter(None, [text, *(f"[{note}]" for note in given)]))


def _metavar(parameter: TyperArgument | TyperOption) -> str:
    kind = parameter.type_descriptor
    if parameter.metavar:
        return parameter.metavar
    if kind.choices:
        return "|".join(map(str, kind.choices))
    return _METAVARS.get(kind.annotation, "TEXT")


def _usage_name(argument: TyperArgument) -> str:
    return _metavar(argument) if argument.required else f"[{_metavar(argument)}]"


def summary_of(text: str | None) -> str:
    """Return the first paragraph of a command's help, in one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def _text_column(sections: Iterable[Sequence[Row]], width: int) -> int:
    """Return where texts start: right of most names, but not beyond a third of the width."""
    most = max(width // 3, 14)
    return max((len(row.label) + 4 for rows in sections for row in rows if len(row.label) + 4 <= most), default=most)


def _lines(row: Row, column: int, width: int) -> list[str]:
    """Return the lines of a row; the text starts below a label that is too long."""
    texts = _wrap(row.text, max(width - column, 16)).splitlines() or [""]
    first, *more = _split_choices("  " + row.label, width)
    if len(row.label) + 4 > column:
        texts.insert(0, "")
    styled = first.replace(row.names, typer.style(row.names, fg="cyan", bold=True), 1) if row.names else first
    return [
        (styled + " " * (column - len(first)) + texts[0]).rstrip(),
        *("      " + part for part in more),
        *(" " * column + line for line in texts[1:]),
    ]


def _split_choices(label: str, width: int) -> list[str]:
    """Split a label that is wider than the screen between its choices."""
    lines = [""]
    for part in re.split(r"(?<=\|)", label):
        if lines[-1] and len(lines[-1] + part) > width - 6 * (len(lines) > 1):
            lines.append("")
        lines[-1] += part
    return lines


def _wrap(text: str, width: int) -> str:
    wrapped = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
    return "\n".join(wrapped).replace(_NO_BREAK, " ")
