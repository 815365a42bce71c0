"""`mimcl keys`: list the configuration keys that --set and a configuration file may have."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from mimcl.cli.help import completions
from mimcl.cli.help.layout import Row, listing, with_notes
from mimcl.cli.options import CONFIG_KEYS, NamedRecipe

if TYPE_CHECKING:
    from mimcl.cli.keys.key_list import Key


def keys_command(
    context: typer.Context,
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN",
            help="Part of a key, or a pattern with * and ?.",
            show_default="all keys",
            autocompletion=completions.key_names,
        ),
    ] = "",
    recipe: Annotated[NamedRecipe, typer.Option(help="Recipe whose values are shown as defaults.")] = "mae_b16",
    json_format: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """List the configuration keys for --set and config.yaml, each with type, unit, default, flag and purpose.

    The keys of `mimcl train` are those of `plan` and `compare` too; `mimcl eval finetune` has its own.
    """
    from mimcl.cli.errors import ConfigError
    from mimcl.cli.json_output import to_json
    from mimcl.cli.keys.key_list import finetune_keys, matching, train_keys
    from mimcl.cli.recipes import RECIPES
    from mimcl.cli.suggest import command

    found = {
        "train": matching(train_keys(RECIPES[recipe]()), pattern),
        "eval finetune": matching(finetune_keys(), pattern),
    }
    if not any(found.values()):
        raise ConfigError(f"no key matches {pattern!r}; `{command('keys')}` lists all")
    if json_format:
        print(to_json(found))
        return
    root = context.find_root()
    train = root.command.get_command(root, "train")  # type: ignore[attr-defined]
    flags = {CONFIG_KEYS.get(option.name): option.opts[0] for option in train.params}
    sections: dict[str, list[Row]] = {}
    for name, keys in found.items():
        for key in keys:
            section = command(name, set=f"{key.key[: key.key.rfind('.') + 1]}KEY=VALUE")
            sections.setdefault(section, []).append(_row(key, flags if name == "train" else {}))
    width = shutil.get_terminal_size((1000, 24)).columns  # a line for each key where there is no terminal
    typer.echo("\n\n".join(listing(sections, width)), color=context.color)


def _row(key: Key, flags: Mapping[str | None, str]) -> Row:
    from mimcl.cli.keys.key_list import shown

    return Row(
        key.key, key.type, with_notes(key.help, unit=key.unit, default=shown(key.default), flag=flags.get(key.key))
    )
