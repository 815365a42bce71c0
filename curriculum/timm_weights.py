"""Weights of timm models, from the Hugging Face hub or from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def fetch_weights(model_name: str, timeout_s: float = 10.0) -> tuple[str | None, str]:
    """Return the path of a timm model's weights in the hub's cache and "", or None and the reason, in one line.

    Downloads them if the hub answers a first request within `timeout_s`; after that huggingface_hub's own timeouts and
    retries apply.
    """
    import timm
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    config = timm.get_pretrained_cfg(model_name) if timm.models.is_model_pretrained(model_name) else None
    if config is None or not config.hf_hub_id:
        return None, f"timm has no weights on the hub for {model_name!r}"
    name = config.hf_hub_filename or "pytorch_model.bin"
    safe = {"pytorch_model.bin": "model.safetensors"}.get(name, name.removesuffix(".bin") + ".safetensors")
    names = [safe, name] if name.endswith(".bin") else [name]  # timm's own order
    repository, _, tag = config.hf_hub_id.partition("@")
    revision = tag or None
    for name in names:
        if isinstance(path := try_to_load_from_cache(repository, name, revision=revision), str):
            return path, ""
    reason = f"it has no {' or '.join(names)}"
    try:
        for name in names:
            try:  # a single request first: without an answer, hf_hub_download would retry for minutes
                get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=timeout_s)
            except EntryNotFoundError:
                continue
            return hf_hub_download(repository, name, revision=revision), ""
    except Exception as error:  # the kinds of errors depend on huggingface_hub's version and HTTP library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return None, f"could not download {repository} ({reason})"


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load every parameter and buffer of `model` from a file, which may contain more."""
    if not path.is_file():
        raise ValueError(f"{path} not found; give a file of weights")
    state: Any
    try:
        if path.suffix == ".safetensors":
            with open(path, "rb") as file:  # the library itself opens only paths in UTF-8
                state = load_file(f"/dev/fd/{file.fileno()}")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # each reader raises its own kinds of errors
        raise ValueError(
            f"{path} is damaged or contains more than tensors ({type(error).__name__}); give another file of weights"
        ) from error
    if isinstance(state, dict):
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    found = state if isinstance(state, dict) else {}
    wanted = model.state_dict()
    bad = [name for name, value in wanted.items() if getattr(found.get(name), "shape", None) != value.shape]
    if bad:
        raise ValueError(
            f"{path}: {len(bad)} of {len(wanted)} weights are missing or differ in shape ({', '.join(bad[:3])}); give "
            "weights of this model"
        )
    model.load_state_dict({name: found[name] for name in wanted})
