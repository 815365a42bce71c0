"""Evaluate a comparison's runs; the settings of its first evaluation of a kind hold for all of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mimcl.cli.compare.comparison import is_evaluated, last_protocol, update_comparison
from mimcl.cli.compare.trials import Trial, Trials
from mimcl.cli.console import console
from mimcl.cli.evaluate.eval_options import LABEL_FREE
from mimcl.cli.evaluate.labelled import LabelledSplits
from mimcl.cli.report.read import read_run
from mimcl.cli.run.signals import StopSignals
from mimcl.pipeline.index import ShardIndex


def evaluate_run(
    run: Trial,
    description: str,
    evaluations: Sequence[str],
    trials: Trials,
    protocols: dict[str, Any],
    signals: StopSignals,
) -> None:
    """Evaluate a run where that was not yet done with `protocols`; record new protocols there and in comparison.json.

    Evaluations started by hand with other settings do not count.
    """
    for evaluation in evaluations:
        name = evaluation.replace("-", "_")
        if not is_evaluated(read_run(run.folder), name, protocols):
            console.print(f"evaluating {description} with {evaluation}")
            trials.start(evaluation_arguments(evaluation, run, trials), run, signals)
            protocols[name] = last_protocol(run.folder, name)
            update_comparison(trials.out, protocols=protocols)


def evaluation_arguments(evaluation: str, run: Trial, trials: Trials) -> list[str]:
    """Return the arguments of `mimcl` that evaluate a run."""
    return ["eval", evaluation, str(run.folder), "--data", trials.index.location]


def current_protocols(
    protocols: Mapping[str, Any], labelled: LabelledSplits | None, index: ShardIndex
) -> dict[str, Any]:
    """Drop protocols whose images have changed since: the train images of `index`, or the labelled ones.

    Protocols that need labels are kept if `labelled` is None.
    """
    images: dict[str, Any] = {}
    if labelled is not None:
        images = {"index": labelled.val.fingerprint, **dict(zip(("train", "val"), labelled.counts, strict=True))}
    return {
        evaluation: protocol
        for evaluation, protocol in protocols.items()
        if (protocol["settings"] | {"index": protocol["index"]}).items()
        >= ({"index": index.fingerprint} if evaluation in LABEL_FREE else images).items()
    }
