"""Frozen feature extractors for the prototypes: a timm model (DINO), dense SIFT, pixels.

An extractor names the square uint8 images it wants (`image_size`), may learn constants from a sample of them (`fit`)
and maps batches of them to vectors. Standardising and normalising the vectors is the business of `prototypes.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

DEFAULT_MODEL = "vit_small_patch16_224.dino"  # DINO (Caron et al. 2021), the feature space of the prototype paper
ACCEPTED = "auto, sift, pixels, timm:MODEL, timm:MODEL@FILE"

# Run in a process of its own, which can be killed at a time limit. The first question is put without the library's
# own five retries, so that a machine without network gets its answer at once.
_FETCH = """
import json, sys
from huggingface_hub import get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
repo, revision, *names = sys.argv[1:]
def first(**options):
    for name in names:
        try:
            return hf_hub_download(repo, name, revision=revision or None, **options)
        except EntryNotFoundError as error:
            if not options and isinstance(error, LocalEntryNotFoundError):
                raise
try:
    path, reason = first(local_files_only=True), ""
    if path is None:
        get_session().head(hf_hub_url(repo, names[0]), timeout=10)
        path = first()
        reason = "" if path else "it has none of " + ", ".join(names)
except Exception as error:
    path, reason = None, (str(error).strip() or type(error).__name__).splitlines()[0]
sys.stdout.write(json.dumps([path, reason]))
"""


class FeatureExtractor(Protocol):
    """Maps images to vectors whose distances mean likeness."""

    name: str  # what prototypes.json records
    image_size: int  # side in pixels of the square images it wants
    fit_images: int  # how many of them it wants to learn from; 0: nothing to learn

    def fit(self, images: Tensor) -> None:
        """Learn constants that depend on the data from a sample, uint8 (n, 3, S, S); most have none."""

    def constants(self) -> dict[str, Tensor]:
        """All that features depend on beside the images and the name: weights, and what was learned."""

    def restore(self, constants: dict[str, Tensor]) -> None:
        """Take what another one learned, as `constants` gave it, in place of `fit`."""

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Features of uint8 images (B, 3, S, S), float32 (B, D)."""


class PixelFeatures(FeatureExtractor):
    """The pixels of a thumbnail, flattened and scaled to [0, 1]; D = 3 * image_size ** 2. Nothing to fit."""

    name = "pixels"
    fit_images = 0

    def __init__(self, image_size: int = 16) -> None:
        self.image_size = image_size

    def constants(self) -> dict[str, Tensor]:
        return {}

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        _check(images, self.image_size)
        return images.flatten(1).cpu().numpy().astype(np.float32) / np.float32(255)


class SiftFeatures(FeatureExtractor):
    """Dense upright SIFT on a regular grid at two scales, RootSIFT, PCA, VLAD; D = words * width = 1024.

    A descriptor covers 4 x 4 bins of 6 or of 12 pixels; one stands every 8 pixels of the grey 96-pixel image where it
    fits: 149 of them. Lowe 2004; RootSIFT: Arandjelovic & Zisserman, CVPR 2012; VLAD: Jegou et al., CVPR 2010; its
    normalisation inside each word: Arandjelovic & Zisserman, CVPR 2013. Sizes chosen by 10-NN accuracy on CIFAR-10
    (5,000 labelled images: 53%; pixels 37%; steps of 16 pixels or bins of 4 and 8 lose 5 to 15 points).
    """

    name = "sift"
    image_size = 96
    fit_images = 2000
    words = 32
    width = 32  # of a descriptor after PCA
    sample = 100_000  # descriptors that PCA and words are learned from

    def __init__(self, seed: int = 0, threads: int = 1) -> None:
        self.seed, self._threads = seed, threads
        self._centre: NDArray[np.float32] | None = None

    def fit(self, images: Tensor) -> None:
        """Learn the PCA and the words from a sample of images, uint8 (n, 3, 96, 96), n >= 1; some 2,000 are plenty."""
        import faiss

        roots = self._descriptors(images).reshape(-1, 128)
        random = np.random.default_rng(self.seed)
        roots = roots[np.sort(random.permutation(len(roots))[: self.sample])].astype(np.float64)
        self._centre = roots.mean(0).astype(np.float32)
        _, vectors = np.linalg.eigh(np.cov(roots, rowvar=False))  # ascending eigenvalues
        self._axes = np.ascontiguousarray(vectors[:, : -self.width - 1 : -1], np.float32)
        reduced = (roots.astype(np.float32) - self._centre) @ self._axes
        start = int(random.integers(2**31))  # faiss wants a C int, and warns of less than 39 points for each word
        kmeans = faiss.Kmeans(self.width, self.words, niter=25, seed=start, min_points_per_centroid=1)
        kmeans.train(reduced)
        self._words = kmeans.centroids

    def constants(self) -> dict[str, Tensor]:
        """Of the PCA (128,) and (128, width), and the words (words, width); RuntimeError before `fit`."""
        self._check_fitted()
        learned = {"centre": self._centre, "axes": self._axes, "words": self._words}
        return {name: torch.from_numpy(array) for name, array in learned.items()}

    def restore(self, constants: dict[str, Tensor]) -> None:
        self._centre, self._axes, self._words = (constants[name].numpy() for name in ("centre", "axes", "words"))

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """VLAD vectors of unit length, float32 (B, 1024), of uint8 images (B, 3, 96, 96). RuntimeError before `fit`."""
        self._check_fitted()
        points = (self._descriptors(images) - self._centre) @ self._axes  # (B, P, width)
        nearest = (points @ (2 * self._words.T) - (self._words**2).sum(1)).argmax(2)
        member = np.eye(self.words, dtype=np.float32)[nearest]  # (B, P, words)
        residual = member.transpose(0, 2, 1) @ points - member.sum(1)[:, :, None] * self._words
        residual /= np.linalg.norm(residual, axis=2, keepdims=True) + 1e-6
        vlad = residual.reshape(len(images), -1)
        return vlad / (np.linalg.norm(vlad, axis=1, keepdims=True) + 1e-6)

    def _check_fitted(self) -> None:
        if self._centre is None:
            raise RuntimeError("SiftFeatures: call fit(images) first")

    def _descriptors(self, images: Tensor) -> NDArray[np.float32]:
        """RootSIFT descriptors of unit length (zero where the image is flat), float32 (n, 149, 128)."""
        import cv2

        _check(images, self.image_size)
        sift = cv2.SIFT_create(nOctaveLayers=1)
        keypoints = [  # x, y, size (two thirds of a bin's width), angle, response, octave (1: read at half the size)
            cv2.KeyPoint(x, y, bins * 2 / 3, 0, 0, octave)
            for octave, bins in ((0, 6), (1, 12))
            for y in range(2 * bins, self.image_size - 2 * bins + 1, 8)
            for x in range(2 * bins, self.image_size - 2 * bins + 1, 8)
        ]

        def describe(image: NDArray[np.uint8]) -> NDArray[np.float32]:
            return sift.compute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), keypoints)[1]

        pixels, threads = np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy()), cv2.getNumThreads()
        cv2.setNumThreads(1)  # one thread an image: the images are too small to be divided
        try:
            with ThreadPoolExecutor(self._threads) as pool:
                found = np.stack(list(pool.map(describe, pixels)))
        finally:
            cv2.setNumThreads(threads)
        return np.sqrt(found / (found.sum(2, keepdims=True) + 1e-6))


class TimmFeatures(FeatureExtractor):
    """The pooled vector of a timm model, with the model's own input size, mean and standard deviation.

    Weights come from the hub (or its cache), or from `file`: safetensors, or a torch file of tensors, flat or under
    "state_dict" or "model"; a classifier is left out. Nothing to fit. ValueError, one line, for an unknown model,
    weights that cannot be had, and a file that is damaged, holds code, or lacks parts of the model.
    """

    def __init__(self, model_name: str, file: str | os.PathLike | None = None) -> None:
        import timm

        options = {}
        if file is None:
            path, reason = fetch_weights(model_name)
            if path is None:
                raise ValueError(f"{reason}; with a copy of the weights, name it: timm:{model_name}@FILE")
            options = {"pretrained": True, "pretrained_cfg_overlay": {"file": path}}
        try:
            model = timm.create_model(model_name, num_classes=0, **options)
        except RuntimeError as error:
            raise ValueError(f"timm:{model_name}: {str(error).splitlines()[0]}") from error
        if file is not None:
            _load_weights(model, Path(file))
        config = timm.data.resolve_model_data_config(model)
        self.name = f"timm:{model_name}" + (f"@{Path(file).name}" if file is not None else "")
        self.image_size, self.fit_images = int(config["input_size"][-1]), 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)
        self.mean, self.std = (torch.tensor(config[n], device=self.device).view(3, 1, 1) for n in ("mean", "std"))

    def constants(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Features of uint8 images (B, 3, S, S), float32 (B, D); bfloat16 arithmetic on CUDA, float32 elsewhere."""
        _check(images, self.image_size)
        inputs = (images.to(self.device, torch.float32) / 255 - self.mean) / self.std
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            features = self.model(inputs)
        return features.float().cpu().numpy()


def fetch_weights(model_name: str, seconds: float | None = None) -> tuple[str | None, str]:
    """The path of a timm model's weights in the hub's cache and "", or None and why they cannot be had, in one line.

    One attempt at a download where need be, in a child process that is killed after `seconds` (None: no limit).
    """
    import timm

    config = timm.get_pretrained_cfg(model_name) if timm.models.is_model_pretrained(model_name) else None
    if config is None or not config.hf_hub_id:
        return None, f"timm has no weights on the hub for {model_name!r}"
    name = config.hf_hub_filename or "pytorch_model.bin"
    safe = {"pytorch_model.bin": "model.safetensors"}.get(name, name.removesuffix(".bin") + ".safetensors")
    names = [safe, name] if name.endswith(".bin") else [name]  # timm's own order
    repository, _, revision = config.hf_hub_id.partition("@")
    command = [sys.executable, "-c", _FETCH, repository, revision, *names]
    quiet = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=quiet).stdout
    except subprocess.TimeoutExpired:
        return None, f"the hub did not deliver {repository} within {seconds:g} s"
    path, reason = json.loads(answer or '[null, "the download process died"]')
    return path, reason and f"the hub did not deliver {repository}: {reason}"


def build_extractor(spec: str, seed: int = 0, seconds: float = 10.0, threads: int = 1) -> tuple[FeatureExtractor, str]:
    """The extractor that `spec` names, and in one line why it is this one.

    `auto` gives the hub one attempt of `seconds` at DINO and otherwise takes sift, which learns with `seed` and
    computes on `threads`. ValueError for a `spec` that is not one of `ACCEPTED`.
    """
    if spec == "auto":
        path, reason = fetch_weights(DEFAULT_MODEL, seconds)
        if path is None:
            return SiftFeatures(seed, threads), f"auto: {reason}"
        return TimmFeatures(DEFAULT_MODEL), f"auto: the weights of {DEFAULT_MODEL} can be had"
    if spec in ("sift", "pixels"):
        return SiftFeatures(seed, threads) if spec == "sift" else PixelFeatures(), "asked for"
    if match := re.fullmatch(r"timm:([^@]+)(?:@(.+))?", spec):
        return TimmFeatures(*match.groups()), "asked for"
    raise ValueError(f"unknown features {spec!r}: accepted are {ACCEPTED}")


def _check(images: Tensor, size: int) -> None:
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        raise ValueError(f"expected uint8 images (B, 3, {size}, {size}), got {images.dtype} {tuple(images.shape)}")


def _load_weights(model: torch.nn.Module, path: Path) -> None:
    """Fill every parameter and buffer of `model` from a file; what the model does not have is left out."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own family of errors; each of them means this
        raise ValueError(f"{path} is damaged, or holds more than tensors ({type(error).__name__})") from error
    if isinstance(state, dict):
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    found = state if isinstance(state, dict) else {}
    wanted = model.state_dict()
    bad = [name for name, value in wanted.items() if getattr(found.get(name), "shape", None) != value.shape]
    if bad:
        raise ValueError(f"{path}: {len(bad)} of {len(wanted)} weights lack or differ in shape: {', '.join(bad[:3])}")
    model.load_state_dict({name: found[name] for name in wanted})
