"""Frozen feature extractors for the prototypes: a timm model (DINO), dense SIFT, pixels.

An extractor takes square uint8 images of side `image_size`, may learn constants from a sample of them (`fit`), and maps
batches of them to vectors. The vectors are standardised and normalised in `clustering.py`.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.curriculum.timm_weights import fetch_weights, load_weights

DEFAULT_MODEL = "vit_small_patch16_224.dino"  # DINO (Caron et al. 2021), as in the prototype paper
Precision = Literal["float32", "bfloat16"]
ACCEPTED = "auto, sift, pixels, timm:MODEL, timm:MODEL@FILE"


class FeatureExtractor(Protocol):
    """Maps images to vectors; similar images have vectors at a small distance."""

    name: str  # recorded in prototypes.json
    image_size: int  # side of the square images, in pixels
    fit_images: int  # number of images to fit; 0: nothing to learn
    precision: Precision = "float32"  # in which it computes; recorded too

    def fit(self, images: Tensor) -> None:
        """Learn constants from a sample of images, uint8 (n, 3, S, S); by default nothing."""
        return

    def constants(self) -> dict[str, Tensor]:
        """Return everything that the features depend on besides the images and the name: weights, learned constants."""

    def restore(self, constants: dict[str, Tensor]) -> None:
        """Set the learned constants to those of another extractor, instead of `fit`."""
        return

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Return features of uint8 images (B, 3, S, S), float32 (B, D)."""


class PixelFeatures(FeatureExtractor):
    """The pixels of a thumbnail, flattened and scaled to [0, 1]; D = 3 * image_size ** 2."""

    name = "pixels"
    fit_images = 0

    def __init__(self, image_size: int = 16) -> None:
        self.image_size = image_size

    def constants(self) -> dict[str, Tensor]:
        return {}

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        _check_images(images, self.image_size)
        return images.flatten(1).cpu().numpy().astype(np.float32) / np.float32(255)


class SiftFeatures(FeatureExtractor):
    """Dense upright SIFT on a regular grid at two scales, RootSIFT, PCA, VLAD; D = words * width = 1024.

    A descriptor covers 4 x 4 bins of 6 or 12 pixels; the 149 descriptors are placed every 8 pixels of the grey 96-pixel
    image. SIFT: Lowe 2004; RootSIFT: Arandjelovic & Zisserman, CVPR 2012; VLAD: Jegou et al., CVPR 2010; normalisation
    within each word: Arandjelovic & Zisserman, CVPR 2013. Sizes were chosen by 10-NN accuracy on CIFAR-10 (5,000
    labelled images: 53%; pixels 37%; steps of 16 pixels or bins of 4 and 8 lose 5 to 15 points).
    """

    name = "sift"
    image_size = 96
    fit_images = 2000
    words = 32
    width = 32  # of a descriptor after PCA
    sample = 100_000  # maximum descriptors to learn PCA and words from

    def __init__(self, seed: int = 0, threads: int = 1) -> None:
        self.seed, self._threads = seed, threads
        self._centre: NDArray[np.float32]  # these three are set by fit or restore
        self._axes: NDArray[np.float32]
        self._words: NDArray[np.float32]

    def fit(self, images: Tensor) -> None:
        """Learn the PCA and the words from images, uint8 (n, 3, 96, 96), n >= 1; 2,000 are enough."""
        import faiss

        roots = self._descriptors(images).reshape(-1, 128)
        random = np.random.default_rng(self.seed)
        roots = roots[np.sort(random.permutation(len(roots))[: self.sample])].astype(np.float64)
        self._centre = roots.mean(0).astype(np.float32)
        _, vectors = np.linalg.eigh(np.cov(roots, rowvar=False))  # ascending eigenvalues
        self._axes = np.ascontiguousarray(vectors[:, : -self.width - 1 : -1], np.float32)
        reduced = ((roots.astype(np.float32) - self._centre) @ self._axes).astype(np.float32)
        start = int(random.integers(2**31))  # faiss takes a C int, and warns of less than 39 points per word
        kmeans = faiss.Kmeans(self.width, self.words, niter=25, seed=start, min_points_per_centroid=1)
        kmeans.train(reduced)
        assert kmeans.centroids is not None
        self._words = kmeans.centroids

    def constants(self) -> dict[str, Tensor]:
        """Return centre (128,) and axes (128, width) of the PCA, and the words (words, width). Requires `fit`."""
        self._check_fitted()
        learned = {"centre": self._centre, "axes": self._axes, "words": self._words}
        return {name: torch.from_numpy(array) for name, array in learned.items()}

    def restore(self, constants: dict[str, Tensor]) -> None:
        self._centre, self._axes, self._words = (constants[name].numpy() for name in ("centre", "axes", "words"))

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Return VLAD vectors of unit length, float32 (B, 1024), of uint8 images. Raises RuntimeError before `fit`."""
        self._check_fitted()
        points = (self._descriptors(images) - self._centre) @ self._axes  # (B, P, width)
        nearest = (points @ (2 * self._words.T) - (self._words**2).sum(1)).argmax(2)
        member = np.eye(self.words, dtype=np.float32)[nearest]  # (B, P, words)
        residual = member.transpose(0, 2, 1) @ points - member.sum(1)[:, :, None] * self._words
        residual /= np.linalg.norm(residual, axis=2, keepdims=True) + 1e-6
        vlad = residual.reshape(len(images), -1)
        return vlad / (np.linalg.norm(vlad, axis=1, keepdims=True) + 1e-6)

    def _check_fitted(self) -> None:
        if not hasattr(self, "_centre"):
            raise RuntimeError("SiftFeatures: call fit(images) first")

    def _descriptors(self, images: Tensor) -> NDArray[np.float32]:
        """Return RootSIFT descriptors of unit length (zero where the image is flat), float32 (n, 149, 128)."""
        import cv2

        _check_images(images, self.image_size)
        sift = cv2.SIFT.create(nOctaveLayers=1)
        keypoints = [  # x, y, size (two thirds of a bin's width), angle, response, octave (1: at half the size)
            cv2.KeyPoint(x, y, bins * 2 / 3, 0, 0, octave)
            for octave, bins in ((0, 6), (1, 12))
            for y in range(2 * bins, self.image_size - 2 * bins + 1, 8)
            for x in range(2 * bins, self.image_size - 2 * bins + 1, 8)
        ]

        def describe(image: NDArray[np.uint8]) -> NDArray[np.float32]:
            return np.asarray(sift.compute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), keypoints)[1], np.float32)

        pixels, threads = np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy()), cv2.getNumThreads()
        cv2.setNumThreads(1)  # one thread per image: the images are too small to split
        try:
            with ThreadPoolExecutor(self._threads) as pool:
                found = np.stack(list(pool.map(describe, pixels)))
        finally:
            cv2.setNumThreads(threads)
        return np.sqrt(found / (found.sum(2, keepdims=True) + 1e-6))


class TimmFeatures(FeatureExtractor):
    """The pooled vector of a timm model, with the model's own input size, mean and standard deviation.

    Weights come from the hub (or its cache), or from `file`: safetensors, or a torch file of tensors, flat or under
    "state_dict" or "model"; a classifier is ignored. Raises ValueError, one line, for an unknown model, weights that
    the hub does not deliver, and a file that is damaged, contains code, or lacks weights.
    """

    def __init__(
        self,
        model_name: str,
        file: str | os.PathLike | None = None,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        import timm

        path: str | None = None
        if file is None:
            path, reason = fetch_weights(model_name)
            if path is None:
                raise ValueError(f"{reason}; check the network, or give a local copy: timm:{model_name}@FILE")
        try:
            model = timm.create_model(
                model_name, pretrained=path is not None, pretrained_cfg_overlay={"file": path}, num_classes=0
            )
        except RuntimeError as error:
            raise ValueError(f"timm:{model_name}: {str(error).splitlines()[0]}") from error
        if file is not None:
            load_weights(model, Path(file))
        config = timm.data.resolve_model_data_config(model)
        self.name = f"timm:{model_name}" + (f"@{Path(file).name}" if file is not None else "")
        self.image_size, self.fit_images = int(config["input_size"][-1]), 0
        self.device = torch.device(device)
        self.precision = precision
        self.model = model.eval().to(self.device)
        self.mean, self.std = (torch.tensor(config[n], device=self.device).view(3, 1, 1) for n in ("mean", "std"))

    def constants(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Return features of uint8 images (B, 3, S, S), float32 (B, D)."""
        _check_images(images, self.image_size)
        inputs = (images.to(self.device, torch.float32) / 255 - self.mean) / self.std
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            features = self.model(inputs)
        return features.float().cpu().numpy()


def build_extractor(
    spec: str,
    seed: int = 0,
    timeout_s: float = 10.0,
    threads: int = 1,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> tuple[FeatureExtractor, str]:
    """Build the extractor that `spec` names; also return the reason for the choice, in one line.

    `auto` is DINO if its weights are in the cache or the hub answers within `timeout_s`, otherwise sift, which learns
    with `seed` and computes on `threads`. `precision` and `device` are those of timm models. Raises ValueError for a
    `spec` that is not one of `ACCEPTED`.
    """
    if spec == "auto":
        path, reason = fetch_weights(DEFAULT_MODEL, timeout_s)
        if path is None:
            return SiftFeatures(seed, threads), f"auto: {reason}"
        return TimmFeatures(
            DEFAULT_MODEL, None, precision, device
        ), f"auto: the weights of {DEFAULT_MODEL} are available"
    if spec == "sift":
        return SiftFeatures(seed, threads), "requested"
    if spec == "pixels":
        return PixelFeatures(), "requested"
    if match := re.fullmatch(r"timm:([^@]+)(?:@(.+))?", spec):
        model_name, file = match.groups()
        return TimmFeatures(model_name, file, precision, device), "requested"
    raise ValueError(f"unknown features {spec!r}; choose one of {ACCEPTED}")


def _check_images(images: Tensor, size: int) -> None:
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        raise ValueError(f"expected uint8 images (B, 3, {size}, {size}), got {images.dtype} {tuple(images.shape)}")
