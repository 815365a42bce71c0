"""Pages of Markdown: their fenced blocks and the commands in them, read as by a shell.

    ```console        lines that begin with `$ ` are run by a test, the others are output
    ```shell-session  the same, but too long for a test, or in need of a GPU, a bucket or a cluster: only parsed
    ```sh             commands without a prompt: only parsed

A page with commands to run says in a comment what its folder holds before the first of them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path for path in sorted((ROOT / "docs").glob("*.md"))}
_FENCE = re.compile(r"^( *)(`{3,})([\w-]*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
_START = re.compile(r"<!-- commands start with: (.+?) -->")
_PROMPTED, _PLAIN = ("console", "shell-session"), ("sh", "bash")


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the content of each fenced block."""
    return [(match[3], match[4]) for match in _FENCE.finditer(text)]


def to_run(text: str) -> list[str]:
    """Return the command lines that a page's reader types and a test runs, in order."""
    return [line for language, content in blocks(text) if language == "console" for line in _typed(content)]


def starts_with(text: str) -> list[str]:
    """Return what the folder holds before the page's first command."""
    found = _START.search(text)
    return found[1].split() if found else []


def mimcl_commands(text: str) -> list[list[str]]:
    """Return the words after `mimcl` of each command in a page: in blocks, indented lines and between backquotes."""
    lines = []
    for language, content in blocks(text):
        if language in _PROMPTED:
            lines += _typed(content)
        elif language in _PLAIN:
            lines += content.replace("\\\n", " ").splitlines()
    prose = _FENCE.sub("", text)
    lines += re.findall(r"^ {4}(?:\$ )?((?:mimcl|torchrun) .+)$", prose.replace("\\\n", " "), re.MULTILINE)
    lines += [" ".join(code.split()) for _, code in re.findall(r"(`+)(.+?)\1", prose, re.DOTALL)]
    return [words for line in lines if "mimcl " in line for words in _after_mimcl(line)]


def _typed(content: str) -> list[str]:
    return re.findall(r"^\$ (.+)$", content.replace("\\\n", " "), re.MULTILINE)


def _after_mimcl(line: str) -> list[list[str]]:
    found: list[list[str]] = []
    current: list[str] | None = None
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    for word in lexer:
        if word == "mimcl":
            current = []
            found.append(current)
        elif set(word) <= set("|&;<>"):
            current = None
        elif current is not None:
            current.append(word)
    return found
