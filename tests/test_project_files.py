"""The files beside the code: versions agree, forms and workflows parse, commands are ones that the parser takes."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers.command_tree import COMMANDS, parse

import mimcl.api

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# Choices that the examples of CONTRIBUTING.md would add, and existing ones of the same kind.
WOULD_ADD = {"rows": "grid", "quadratic": "cosine", "torch-resize": "reference"}


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_the_changelog_begins_with_the_version_of_the_package():
    versions = re.findall(r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", text("CHANGELOG.md"), re.M)
    assert len(versions) == len(re.findall(r"^## ", text("CHANGELOG.md"), re.M))
    assert versions[0][0] == PROJECT["project"]["version"]
    assert all(date != "unreleased" for _, date in versions[1:])
    kinds = set(re.findall(r"^### (.+)$", text("CHANGELOG.md"), re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_command_is_in_the_changelog():
    commands = {name for name, command in COMMANDS.items() if name and not getattr(command, "commands", None)}
    words = set(re.findall(r"`(?:mimcl )?([a-z -]+)`", text("CHANGELOG.md")))
    assert not [name for name in commands if name not in words and name.removeprefix("eval ") not in words]


def test_the_citation_has_the_version_and_what_is_required():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["title"] == PROJECT["project"]["name"]
    assert " AND ".join(citation["license"]) == PROJECT["project"]["license"]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert all({"given-names", "family-names"} == author.keys() for author in reference["authors"])


@pytest.mark.parametrize(("workflow", "called"), [("ci", {"tools/test.sh", ".ci/run"}), ("nightly", {"tools/test.sh"})])
def test_the_workflows_call_existing_scripts(workflow, called):
    jobs = yaml.safe_load(text(f".github/workflows/{workflow}.yml"))["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    words = [shlex.split(run) for run in runs]
    scripts = [word for line in words for word in line if "/" in word]
    assert {*scripts} == called
    for line in words:
        assert (ROOT / line[line[0] == "sh"]).is_file()
    assert (ROOT / ".ci/run").stat().st_mode & 0o111  # called without sh


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_issue_forms_have_what_a_form_needs(path):
    form = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    assert {part["type"] for part in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert asked
    assert len({part["id"] for part in asked}) == len(asked)
    assert all(part["attributes"]["label"] for part in asked)


def test_the_image_gets_all_that_the_package_is_made_of():
    copied = {
        source
        for words in re.findall(r"^COPY (?!--from)(.+) \S+$", text("Dockerfile"), re.M)
        for source in words.split()
    }
    folders = {folder.partition("/")[0] for folder in PROJECT["tool"]["setuptools"]["package-dir"].values()}
    assert copied == folders | {"pyproject.toml", PROJECT["project"]["readme"], "LICENSE"}
    assert copied == set(re.findall(r"^!(.+)$", text(".dockerignore"), re.M))
    extras = re.search(r"^ARG EXTRAS=(.+)$", text("Dockerfile"), re.M)
    assert {*extras[1].split(",")} <= PROJECT["project"]["optional-dependencies"].keys()
    assert re.search(r'^ENTRYPOINT \["mimcl"\]$', text("Dockerfile"), re.M)


def test_the_development_container_is_a_stage_of_the_image():
    build = json.loads(text(".devcontainer/devcontainer.json"))["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert build["target"] in re.findall(r"^FROM \S+ AS (\S+)$", text("Dockerfile"), re.M)


def commands_in(name: str) -> list[str]:
    """Commands of a page: indented lines without the prompt or a comment, and those between single backquotes."""
    page = re.sub(r"```.*?```", "", text(name), flags=re.DOTALL)
    lines = re.findall(r"^    ((?:mimcl|sh|torchrun) .+)$", page, re.M) + re.findall(r"`(mimcl [^`]+)`", page)
    return [line.partition(" # ")[0].rstrip() for line in lines if "COMMAND" not in line]


@pytest.mark.parametrize("name", ["AGENTS.md", "CONTRIBUTING.md", "Dockerfile"])
def test_the_parser_takes_every_command(name):
    found = commands_in(name) if name != "Dockerfile" else re.findall(r"(?<=work\" )mimcl .+$", text(name), re.M)
    assert found
    for line in found:
        program, *words = shlex.split(line)
        if program == "sh":
            assert (ROOT / words[0]).is_file()
        elif " ".join(words) not in COMMANDS:  # a mere name
            parse([WOULD_ADD.get(word, word) for word in words])


@pytest.mark.parametrize("line", ["trian", "train --epochs two", "eval knn", "train --masking rows", "keys --no-such"])
def test_the_parser_refuses_what_is_no_command(line):
    with pytest.raises(Exception, match=r"No such|valid number|not one of|Missing") as refused:
        parse(shlex.split(line))
    assert "UsageError" in [kind.__name__ for kind in type(refused.value).__mro__]  # of typer's own copy of click


def test_names_in_the_pages_are_those_of_the_api():
    names = {
        name
        for page in ("AGENTS.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
        for words in re.findall(r"from mimcl\.api import (.+)|mimcl\.api\.(\w+)", text(page))
        for name in "".join(words).split(", ")
    }
    assert names
    assert names <= set(mimcl.api.__all__)


def test_links_lead_to_files():
    for page in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        links = [link for link in re.findall(r"\]\(([^)#]+)", text(page)) if "://" not in link]
        assert not [link for link in links if not (ROOT / link).exists()], page
