"""Find and check the prototype sets that lie beside packed shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mimcl.pipeline.files import list_folder


def prototype_set_folders(data: Path) -> list[Path]:
    """Return the folders of the prototype sets beside the shards in `data`, sorted. Raises DataError."""
    return [path for path in list_folder(data / "prototypes") if path.is_dir() and not path.name.startswith(".")]


def verify_prototype_sets(folders: Sequence[Path], data: Path, train: dict | None) -> list[str]:
    """Return one line for each problem of sets for the shards in `data`; `train` is its train split in dataset.json."""
    from mimcl.cli.suggest import prototypes_build
    from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
    from mimcl.pipeline.prototype_location import as_option

    findings = []
    for folder in folders:
        if train is None:
            findings.append(f"{folder}: made for a train split, which the data set lacks")
            continue
        try:
            chosen = folder.name if folder.parent == data / "prototypes" else as_option(folder)
            found = PrototypeSet.load(folder, train["fingerprint"], build=prototypes_build(data, chosen))
        except PrototypeError as error:
            findings.append(str(error))
        else:
            if len(found.distance) != train["samples"]:
                findings.append(f"{folder}: {len(found.distance):,} distances for {train['samples']:,} samples")
    return findings
