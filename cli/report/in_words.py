"""What a run trained, in words."""

from __future__ import annotations

from mimcl.cli.console import format_epochs
from mimcl.cli.report.formatting import percent
from mimcl.cli.report.run_record import RunRecord

_CURRICULA = {
    "none": "Images are drawn uniformly.",
    "proto": "Typical images are drawn first, and others join as the temperature rises.",
    "anti": "Atypical images are drawn first, and others join as the temperature rises.",
    "subset": "A random subset of the images is drawn, which grows as the temperature rises.",
}
_MASKERS = {
    "random": "at random",
    "block": "in a block",
    "grid": "in a regular grid",
    "hard-patches": "where a predictor expects a high loss",
    "learned": "where a masking network scores high",
    **{colour: f"where {colour} noise is high" for colour in ("green", "blue", "red", "purple")},
}


def summary(run: RunRecord) -> str:
    """Return two sentences for readers who have not seen such a run before; empty for an unknown configuration."""
    c = run.config
    ratio, masker = c.get("masking.mask_ratio"), _MASKERS.get(str(c.get("masking.name")))
    if not isinstance(ratio, float | int) or masker is None:
        return ""
    length = (
        f"{run.images:,} images for {format_epochs(float(f'{run.draws / run.images:.3g}'))}" if run.images else "images"
    )
    removed = f"{percent(ratio, 0)} of each image's patches are removed, {masker}, and predicted from the rest"
    drawn = _CURRICULA.get(str(c.get("curriculum.name")), "")
    return f"A masked autoencoder, trained on {length}: {removed}. {drawn}".rstrip()


def subtitle(run: RunRecord) -> str:
    """Return the settings that characterise a run."""
    c = run.config
    parts = [
        f"recipe {c.get('recipe')}",
        f"{c.get('model.name')}/{c.get('model.patch_size')} at {c.get('data.image_size')} px",
        f"curriculum {c.get('curriculum.name')}",
        *([f"resolution {sides}"] if (sides := c.get("curriculum.resolution")) else []),
        f"masking {c.get('masking.name')} {c.get('masking.mask_ratio')}",
        f"batch {c.get('data.batch_size')}",
        f"seed {c.get('seed')}",
    ]
    return " · ".join(parts)
