"""What a comparison judges its runs by: the settings of its own first evaluation of a kind hold for all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mimcl.cli.compare.comparison import is_evaluated, last_protocol, note
from mimcl.cli.compare.trials import Trial, Trials
from mimcl.cli.console import console
from mimcl.cli.evaluate.labelled import LabelledSplits
from mimcl.cli.report.read import read_run
from mimcl.cli.run.signals import StopSignals


def judge(
    run: Trial,
    what: str,
    evaluations: Sequence[str],
    trials: Trials,
    protocols: dict[str, Any],
    signals: StopSignals,
) -> None:
    """Judges a run where it was not yet by `protocols`, and keeps there and in comparison.json how it was judged.

    The same evaluation given by hand, with other settings, does not count.
    """
    for evaluation in evaluations:
        name = evaluation.replace("-", "_")
        if not is_evaluated(read_run(run.folder), name, protocols):
            console.print(f"judging {what} by {evaluation}")
            trials.start(judging(evaluation, run, trials), run, signals)
            protocols[name] = last_protocol(run.folder, name)
            note(trials.out, protocols=protocols)


def judging(evaluation: str, run: Trial, trials: Trials) -> list[str]:
    """The arguments of mimcl that judge a run."""
    return ["eval", evaluation, str(run.folder), "--data", trials.index.location]


def of_this_data(protocols: Mapping[str, Any], labelled: LabelledSplits | None) -> dict[str, Any]:
    """Without those by images that have changed since, by which nothing new can be judged; all where None are known."""
    now: dict[str, Any] = {}
    if labelled is not None:
        now = {"index": labelled.val.fingerprint, **dict(zip(("train", "val"), labelled.counts, strict=True))}
    return {
        evaluation: its
        for evaluation, its in protocols.items()
        if (its["settings"] | {"index": its["index"]}).items() >= now.items()
    }
