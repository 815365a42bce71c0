"""Reading dataset.json, the description of a packed data set, and checking what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mimcl.pipeline.files import DataError, NotPackedError, open_regular, remedy
from mimcl.pipeline.remote.metadata_cache import fetch_description
from mimcl.pipeline.remote.urls import joined, shown, url_of

DATASET_FORMAT = "mimcl-shards/1"
SPLITS = ("train", "val")
ADOPTED_NAME = re.compile(r"[^./\0-\x1f][^/\0-\x1f]*\.tar")  # file name of a shard that another program packed
PACK_AGAIN = "pack the images again, with --overwrite"
_MAX_BYTES = 1 << 28  # of dataset.json: over a million shards


def read_dataset(root: str | Path) -> dict[str, Any]:
    """Read dataset.json in a folder or at a URL. Raises DataError if it is missing, damaged or in another format."""
    url = url_of(root)
    path = (fetch_description(url) if url else Path(root)) / "dataset.json"
    where = joined(shown(url), path.name) if url else path
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes")
        description = json.loads(text)
        kind = description["format"]
        if kind == DATASET_FORMAT:
            packed = description.get("packed")
            adopted = isinstance(packed, dict) and packed.get("adopted") is True
            for split, part in description["splits"].items():
                _check_split(shown(root), split, part, adopted)
    except (FileNotFoundError, NotADirectoryError):
        raise NotPackedError(shown(root)) from None
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror or error}); {remedy(error, PACK_AGAIN)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"  # some errors contain the whole content
        raise DataError(f"{where} cannot be read ({reason:.200}); {PACK_AGAIN}") from None
    if kind != DATASET_FORMAT:
        raise DataError(
            f"{where} has format {kind!r:.80}, this version reads {DATASET_FORMAT!r}; upgrade mimcl or pack again"
        )
    return description


def _check_split(root: str, split: str, part: dict[str, Any], adopted: bool) -> None:
    """Check the entry of a split: shards that were `adopted` may have any plain file name.

    Raises ValueError, KeyError or TypeError if it is damaged, DataError if an earlier version of mimcl packed it.
    """
    if split not in SPLITS:
        raise ValueError(f"a split called {split!r:.80}")
    if "index_xxh128" not in part and "fingerprint" in part:
        raise DataError(
            f"{root} was packed by an earlier version of mimcl, without a checksum of its index; {PACK_AGAIN}"
        )
    texts = [part["fingerprint"], part["index_xxh128"], *part["classes"]]
    numbers = [part["samples"]]
    for place, shard in enumerate(part["shards"]):
        # A name is joined to the folder and opened, so it must not lead out of it.
        if shard["name"] != f"{split}-{place:06d}.tar" and not (adopted and ADOPTED_NAME.fullmatch(shard["name"])):
            raise ValueError(f"a shard called {shard['name']!r:.80}")
        texts.append(shard["xxh128"])
        numbers += [shard["bytes"], shard["samples"]]
    if not all(type(text) is str for text in texts):
        raise TypeError(f"a checksum or class of {split} is not a string")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"a number of {split} is not an integer from 0 to 2^63 - 1")
    if part["samples"] != sum(shard["samples"] for shard in part["shards"]):
        raise ValueError(f"the shards of {split} do not add up to {part['samples']} samples")
