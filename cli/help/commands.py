"""How commands are declared: a group of them, with help at any width and by `-h` too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from mimcl.cli.help.layout import help_text

Function = TypeVar("Function", bound=Callable[..., Any])


class Commands(typer.Typer):
    """A group of commands. Without arguments it prints its help and exits with code 2."""

    def __init__(self, purpose: str, epilog: str | None = None, completion: bool = False) -> None:
        super().__init__(
            cls=_Group,
            help=purpose,
            epilog=epilog,
            add_completion=completion,
            context_settings={"help_option_names": ["--help", "-h"]},
            rich_markup_mode=None,  # it would read brackets in help as markup
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """As typer's; the first paragraph of the function's docstring says what the command does."""
        return super().command(name, cls=_Command, **settings)


def option(heading: str, text: str, default: str | None = None, *names: str, **settings: Any) -> Any:
    """Return an option under a heading of the help. `default` says what holds where the option is not given."""
    return typer.Option(*names, help=text, show_default=default or True, rich_help_panel=heading, **settings)


class _Command(TyperCommand):
    def format_help(self, context: Any, formatter: Any) -> None:
        formatter.write(help_text(self, context))


class _Group(TyperGroup):
    def format_help(self, context: Any, formatter: Any) -> None:
        formatter.write(help_text(self, context))

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        if not arguments and not context.resilient_parsing:  # which completion sets
            typer.echo(context.get_help(), err=True, color=context.color)
            raise typer.Exit(2)
        return super().parse_args(context, arguments)
