"""Commands in messages, to be pasted into a shell as they are."""

from __future__ import annotations

import os
import shlex
import sys


def command(name: str, /, *arguments: object, **options: object) -> str:
    """Return `mimcl NAME ARGUMENTS --OPTION VALUE ...`, quoted; without options that are None."""
    words = [quote(str(argument)) for argument in arguments]
    for option, value in options.items():
        if value is not None:
            words += [f"--{option}", quote(str(value))]
    return " ".join(["mimcl", name, *words])


def unless_default(data: object) -> object | None:
    """Return the value for --data, None if that is the default."""
    return None if str(data) == "shards" else data


def prototypes_build(data: object, prototypes: str = "default") -> str:
    """Return the command that builds a prototype set, given as `--prototypes` takes it, for the shards in `data`."""
    where = {"out": prototypes} if "/" in prototypes else {"name": None if prototypes == "default" else prototypes}
    return command("prototypes build", data=unless_default(data), **where)


def quote(text: str) -> str:
    """Return a word for a shell; by its bytes, as bash and zsh read them, where the screen cannot show it as it is."""
    if text.isprintable() and _can_be_shown(text):
        return shlex.quote(text)
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(plain)}'"


def _can_be_shown(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
