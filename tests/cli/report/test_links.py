"""Links between reports are relative, and names of folders stay names."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from helpers.pages import Page
from helpers.run_folders import step_line, write_run

from mimcl.cli.report.links import comparison_link, relative_link, report_link
from mimcl.cli.report.writer import write_report


@pytest.mark.parametrize("name", ["run", "a b", "javascript:alert(1)", "x?y#z", "ü&<", os.fsdecode(b"\xff")])
def test_a_link_leads_to_its_target_from_anywhere(tmp_path, name):
    target = tmp_path / name / "report.html"
    target.parent.mkdir()
    target.write_text("x")
    for page in (tmp_path / "report.html", tmp_path / "one" / "page.html", target):
        link = relative_link(target, page)
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
        reached = page.parent / Path(unquote(parts.path, errors="surrogateescape"))
        assert os.path.normpath(reached) == str(target)


def test_a_run_of_a_comparison_links_to_its_page_and_back(tmp_path):
    both = tmp_path / "both"
    runs = [write_run(both / f"arm-seed{seed}", [step_line(1, 1.0)], seed=seed) for seed in (0, 1)]
    alone = Page(write_report([runs[0]]))
    assert not [a for a in alone.all("a") if not a["href"].startswith("#")]
    (both / "comparison.json").write_text("{}")
    own = write_report([runs[0]])
    (link,) = [a["href"] for a in Page(own).all("a") if not a["href"].startswith("#")]
    assert link == "../report.html"
    page = Page(write_report(runs, both / "report.html"))
    page.assert_valid()
    assert [a["href"] for a in page.all("a") if not a["href"].startswith("#")] == ["arm-seed0/report.html"]
    assert "mimcl report RUN" in page.text
    elsewhere = tmp_path / "elsewhere" / "page.html"
    elsewhere.parent.mkdir()
    assert comparison_link(runs[0], elsewhere) == "../both/report.html"
    assert report_link(runs[0], elsewhere) == "../both/arm-seed0/report.html"
    assert report_link(runs[1], elsewhere) is None


def test_the_page_names_the_command_that_compares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Page(write_report([write_run(Path("a run"), [step_line(1, 1.0)])]))
    page.assert_valid()
    assert "mimcl report 'a run' OTHER" in page.text
