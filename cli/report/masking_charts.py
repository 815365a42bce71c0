"""Charts of what the masker logs."""

from __future__ import annotations

from mimcl.cli.report.chart import Chart, Format
from mimcl.cli.report.charts import line
from mimcl.cli.report.run_record import RunRecord

_OTHERS = {
    *("step", "loss", "lr", "grad_norm", "images_per_second", "data_wait", "nonfinite_steps"),
    *("image_size", "relative_cost", "temperature", "effective_fraction"),
}  # columns of other charts
_PERCENT: Format = "percent"
_KNOWN: dict[str, tuple[str, Format]] = {
    "hard_share": (
        "How many of the removed patches are those predicted to be hardest: it should follow the schedule; the others "
        "are random.",
        _PERCENT,
    ),
    "ranking_accuracy": (
        "How often the loss predictor knows which of two patches is harder: it should rise above chance, 50 %.",
        _PERCENT,
    ),
    "teacher_momentum": (
        "How slowly the teacher that proposes masks follows the model: 100 % is not at all.",
        _PERCENT,
    ),
    "mask_agreement": (
        "How often two images agree whether a patch is removed: random masks of ratio 0.75 reach 62.5 %, and 100 % "
        "means one mask for all images.",
        _PERCENT,
    ),
    "curriculum_factor": (
        "Whether the masking module helps the autoencoder (above 0) or works against it (below 0).",
        "number",
    ),
    "score_mean": ("The mean score of a patch: it should stay near the mask ratio.", "number"),
    "score_entropy": ("How undecided the scores are: 1 bit is a coin toss, 0 a certain choice.", "number"),
    "gaussian": ("A term of the masking module's objective: it is low where scores are near 0 or 1.", "number"),
    "kl": (
        "A term of the masking module's objective: it is low where the mean score is near the mask ratio.",
        "number",
    ),
    "diversity": (
        "A term of the masking module's objective: it is low where different images get different masks.",
        "number",
    ),
}


def masking_charts(run: RunRecord) -> list[Chart]:
    """Return one chart for each metric of the masker."""
    charts = []
    for name in run.steps.columns:
        if name not in _OTHERS:
            label = name.replace("_", " ")
            explanation, y_format = _KNOWN.get(name, ("A metric that the masker logs.", "number"))
            chart = line(label, "of the step's last micro-batch", explanation, run.steps, {name: label}, y_format)
            if chart:
                charts.append(chart)
    return charts
