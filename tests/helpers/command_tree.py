"""All commands of mimcl with their parameters, as the parser has them."""

from typer.main import get_command

from mimcl.cli.app import app


def commands() -> dict[str, object]:
    """Return commands and groups by their names on the command line, without mimcl: "", "train", "eval knn"."""
    found = {}

    def add(name, command):
        found[name] = command
        for inner in command.list_commands(None) if hasattr(command, "list_commands") else ():
            add(f"{name} {inner}".strip(), command.get_command(None, inner))

    add("", get_command(app))
    return found


COMMANDS = commands()
PARAMETERS = [(name, parameter) for name, command in COMMANDS.items() for parameter in command.params]


def parse(words: list[str]) -> None:
    """Parse a command line as the program does, without running it; raises a UsageError."""
    command, context = COMMANDS[""], None
    while hasattr(command, "commands"):
        context = command.make_context(command.name, words, parent=context)
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(command.name, words, parent=context)
