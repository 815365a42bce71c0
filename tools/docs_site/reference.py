"""MkDocs hook: fill in the pages of keys and of commands, from what `mimcl keys` and `mimcl COMMAND --help` print.

A page has <!-- generated: keys --> or <!-- generated: commands --> where the text belongs.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

from mkdocs.structure.pages import Page
from typer.main import get_command

from mimcl.cli.app import app
from mimcl.cli.config import Config
from mimcl.cli.help.layout import sections, usage
from mimcl.cli.keys.key_list import Key, finetune_keys, shown, train_keys
from mimcl.cli.options import CONFIG_KEYS

_MARK = re.compile(r"<!-- generated: (\w+) -->")
_PURPOSES = {
    "": "The run as a whole",
    "data": "Where images come from, and how many at once",
    "curriculum": "Which images are drawn, and how large their crops are",
    "masking": "Which patches are removed",
    "hard_patches": "HPM, for `--masking hard-patches`",
    "learned_masking": "CL-MAE, for `--masking learned`",
    "model": "Encoder and decoder",
    "optim": "Optimizer and learning rate",
    "trainer": "Length, precision, checkpoints, evaluations during training",
    "log": "Trackers",
}


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Replace the marks of a page."""
    texts = {"keys": _keys, "commands": _commands}
    return _MARK.sub(
        lambda mark: f'<div class="reference {mark[1]}" markdown>\n\n{texts[mark[1]]()}\n\n</div>', markdown
    )


def _keys() -> str:
    flags = {CONFIG_KEYS.get(option.name): option.opts[0] for option in _command("train").params}
    sections: dict[str, list[Key]] = {}
    for key in train_keys(Config()):
        sections.setdefault(key.key.rpartition(".")[0], []).append(key)
    blocks = []
    for name, keys in sections.items():
        heading = f"## {name or 'Top level'} {{#{name or 'top'}}}"
        blocks += [heading, _PURPOSES[name] + ".", "\n".join(_key_table(keys, "", flags))]
    blocks += ["## eval finetune {#finetune}", "For `mimcl eval finetune --set`, with the defaults for ViT-B."]
    blocks.append("\n".join(_key_table(finetune_keys(), "finetune.", {})))
    return "\n\n".join(blocks)


def _key_table(keys: Iterable[Key], prefix: str, flags: dict[str | None, str]) -> Iterator[str]:
    yield "| key | type | default | unit | purpose |\n|---|---|---|---|---|"
    for key in keys:
        kind = _words(key.choices or key.type.split("|"))
        flag = f" Flag: `{flags[key.key]}`." if key.key in flags else ""
        name = f"`{key.key}`{{#{prefix}{key.key}}}"
        yield _line(name, kind, f"`{shown(key.default)}`", key.unit or "", _plain(key.help) + flag)


def _commands() -> str:
    blocks = []
    for name, command in _walk(get_command(app), ""):
        context = command.make_context(f"mimcl {name}".strip(), [], resilient_parsing=True)
        blocks.append(f"## mimcl {name} {{#{name.replace(' ', '-')}}}" if name else "## mimcl {#mimcl}")
        blocks.append(_plain(inspect.cleandoc(command.help or "")))
        blocks.append(f"```text\n{usage(command, context).removeprefix('Usage: ')}\n```")
        blocks.append("\n".join(_command_table(command, context, name)))
    return "\n\n".join(blocks)


def _command_table(command: Any, context: Any, name: str) -> Iterator[str]:
    """A row for each subject, and below it those of its commands or parameters."""
    yield "| | takes | |\n|---|---|---|"
    commands = command.list_commands(context) if hasattr(command, "list_commands") else ()
    for title, rows in sections(command, context).items():
        shown_rows = [row for row in rows if "--help" not in row.names]
        if shown_rows:
            yield _line(f"**{title}**", "", "")
        for row in shown_rows:
            if row.names in commands:
                full = f"{name} {row.names}".strip()
                yield _line(f"[{row.names}](#{full.replace(' ', '-')})", "", _plain(row.text))
            else:
                text, notes = _split_notes(row.text)
                text = _plain(text) + "".join(f' <span class="note">{_plain(note)}</span>' for note in notes)
                takes = _words(row.value.split("|")) if row.value else ""
                yield _line(*([f"`{row.names}`", takes] if row.names else [takes, ""]), text)


def _split_notes(text: str) -> tuple[str, list[str]]:
    """Split off the notes in brackets at the end of a help text, such as [at least 1] [default: 3]."""
    notes = re.search(r"(?:(?:^|\s)\[[^\[\]]+\])*$", text)
    assert notes  # matches the empty end too
    return text[: notes.start()], re.findall(r"\[(.+?)\]", notes[0])


def _plain(text: str) -> str:
    """Return a text in which only code between backquotes is marked up."""
    parts = text.split("`")
    escaped = (html.escape(part, quote=False).replace("|", "&#124;") for part in parts[::2])
    parts[::2] = [re.sub(r"([\\*_\[\]])", r"\\\1", part) for part in escaped]
    return "`".join(parts)


def _words(words: Iterable[str]) -> str:
    return " ".join(f"`{word}`" for word in words)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for inner in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from _walk(command.get_command(None, inner), f"{name} {inner}".strip())


def _command(name: str) -> Any:
    return dict(_walk(get_command(app), ""))[name]
