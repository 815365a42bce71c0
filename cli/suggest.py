"""Commands in messages, to be pasted into a shell as they are. No other module writes them as text (a test)."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from mimcl.pipeline.files import NotPackedError
from mimcl.pipeline.remote.urls import url_of


def command(name: str, /, *arguments: object, **options: object) -> str:
    """Return `mimcl NAME ARGUMENTS --OPTION VALUE ...`, quoted; options with a list are repeated.

    An option that is True is a flag; those that are None or False are omitted.
    """
    words = [quote(_not_an_option(str(argument))) for argument in arguments]
    for option, given in options.items():
        flag = f"--{option.replace('_', '-')}"
        for value in given if isinstance(given, list) else [given]:
            if value is True:
                words.append(flag)
            elif value is not None and value is not False:
                words += [f"{flag}={quote(str(value))}"] if str(value).startswith("-") else [flag, quote(str(value))]
    return " ".join(["mimcl", name, *words])


def invocation() -> str:
    """Return the command that this process was started with."""
    return " ".join(["mimcl", *map(quote, sys.argv[1:])])


def unless_default(data: object) -> object | None:
    """Return the value for --data, None if that is the default."""
    return None if str(data) == "shards" else data


def prototypes_build(data: object, prototypes: str = "default") -> str:
    """Return the command that builds a prototype set, given as `--prototypes` takes it, for the shards in `data`."""
    where = {"out": prototypes} if "/" in prototypes else {"name": None if prototypes == "default" else prototypes}
    return command("prototypes build", data=unless_default(data), **where)


def list_damage(data: str | Path, decode: bool = True) -> str:
    """Return how to find all damaged images in `data`, as a clause; what to check of remote shards is a copy."""
    if url_of(data):
        return "`mimcl verify` of a local copy lists what is wrong"
    return f"`{command('verify', data, decode=decode)}` lists what is wrong"


def after_training(run: Path, evaluable: bool) -> str:
    """Return the command to run after a training: an evaluation, without labels where the images have none."""
    return command(f"eval {'knn' if evaluable else 'rank'}", run)


def after_evaluation(evaluation: str, path: Path, home: Path, data: str | None) -> str | None:
    """Return the command to run after an evaluation of `path`, whose results lie in `home`."""
    if evaluation == "knn":
        return command("eval linear", path, data=data)
    return command("report", home) if (home / "config.yaml").exists() else None


def advised(error: Exception) -> str:
    """Return an error's message, with the command that packs what it lacks."""
    if not isinstance(error, NotPackedError):
        return str(error)
    if url_of(error.root):
        return f"{error}; make one with `{command('shard', 'SRC', out='FOLDER')}` and upload it"
    return f"{error}; make one with `{command('shard', 'SRC', out=unless_default(error.root))}`"


def quote(text: str) -> str:
    """Return a word for a shell; by its bytes, as bash and zsh read them, where the screen cannot show it as it is."""
    if text.isprintable() and _can_be_shown(text):
        return shlex.quote(text)
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(plain)}'"


def _not_an_option(argument: str) -> str:
    return f"./{argument}" if argument.startswith("-") else argument


def _can_be_shown(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
