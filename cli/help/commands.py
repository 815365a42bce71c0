"""How commands are declared: a group of them, with help at any width and by `-h` too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from mimcl.cli.help.layout import help_text, summary_of

Function = TypeVar("Function", bound=Callable[..., Any])


class Deferred(NamedTuple):
    """A command or group whose module is imported when it is run or asked for help; the group's help needs only this.

    `summary` is the first paragraph of its docstring (a test compares them).
    """

    heading: str
    home: str  # MODULE:NAME of a function or of Commands
    summary: str

    def load(self, name: str) -> TyperCommand | TyperGroup:
        """Import it, and build what parses its arguments."""
        module, _, attribute = self.home.partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, Commands):
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            alone.command(name, cls=_Command)(found)
            found = alone
        command = typer.main.get_command(found)
        assert isinstance(command, TyperCommand | TyperGroup)
        command.name = name
        return command


class Commands(typer.Typer):
    """A group of commands. Without arguments it prints its help and exits with code 2."""

    def __init__(
        self,
        purpose: str,
        epilog: str | None = None,
        completion: bool = False,
        deferred: Mapping[str, Deferred] | None = None,
    ) -> None:
        super().__init__(
            cls=type("_Group", (_Group,), {"deferred": deferred or {}}),
            help=purpose,
            epilog=epilog,
            add_completion=completion,
            context_settings={"help_option_names": ["--help", "-h"]},
            rich_markup_mode=None,  # it would read brackets in help as markup
        )
        super().callback()(lambda: None)  # otherwise a group with one command is that command

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
    deferred: Mapping[str, Deferred] = {}

    def list_commands(self, context: Any) -> list[str]:
        return [*self.deferred, *(name for name in self.commands if name not in self.deferred)]

    def get_command(self, context: Any, name: str) -> Any:
        wanted = [name] if name in self.deferred else []
        if not wanted and name not in self.commands:
            wanted = [*self.deferred]  # a typo: typer suggests similar names among those that are loaded
        for missing in wanted:
            if missing not in self.commands:
                self.commands[missing] = self.deferred[missing].load(missing)
        return super().get_command(context, name)

    def summaries(self) -> list[tuple[str, str, str]]:
        """Return heading, name and summary of each command, without importing it."""
        return [
            (known.heading, name, known.summary)
            if (known := self.deferred.get(name))
            else ("Commands", name, summary_of(self.commands[name].help))
            for name in self.list_commands(None)
        ]

    def format_help(self, context: Any, formatter: Any) -> None:
        formatter.write(help_text(self, context))

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        if not arguments and not context.resilient_parsing:  # which completion sets
            typer.echo(context.get_help(), err=True, color=context.color)
            raise typer.Exit(2)
        for parameter in self.get_params(context):
            if isinstance(parameter, TyperOption) and parameter.is_flag and parameter.default is None:
                parameter.default = False  # to check a None, typer imports pydantic, which takes 0.1 s
        return super().parse_args(context, arguments)
