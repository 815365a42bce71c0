"""Run the learned temperature on a simulated learner, for several eta and beta, run lengths, window sizes and noise.

    python tools/bench/learned_temperature.py

Plan and learned temperature are the real ones; only the losses are simulated. An image of hardness h has the loss

    0.35 + 0.65 exp(-20 exp(-2.5 h) e)

where the exposure e is the mean of how often images of similar h and how often all images were drawn, as a share of the
draws per image in the whole run. At first all losses are equal; typical images are learned early, far ones late and
incompletely. The loss of a draw has noise of 30 % (standard deviation), and the first 5 % of a run, the warm-up, teach
less. Distances are bell-shaped, with one prototype per 50 images.

Each row is a run: r at several points, in percent of the run, and the largest "cov": the loss term of the gradient over
its entropy term (above 1 the temperature would fall). "clean" runs use sums without noise. With noise, a temperature
that never falls can only be pushed up.

Why eta 0.03 and beta 0.15 are the defaults: r stays near 0.15 while typical images are being learned, and then rises to
0.38 in 100 windows and to 0.56 in 3,200. With a smaller eta or beta short runs hardly move; with a larger beta a long
run admits most data right after its warm-up. learned_temperature.txt has the tables, and a real run in which the losses
differ much less.
"""

import argparse
import math
from types import SimpleNamespace

import numpy as np
import torch

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.learned_temperature import LearnedTemperature
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.temperature import p_tau
from mimcl.pipeline.augment import hash64

POINTS = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999)
SIZES = ((500, 64), (50_000, 256))  # images, batch size: windows of 256 and of 3,328 draws
LENGTHS = (50, 100, 400, 3200)  # windows
WARM_UP = 0.05  # share of a run
BINS = 50  # of h; images of a bin share their exposure


def prototype_distances(n: int) -> np.ndarray:
    """Return bell-shaped distances in [0, 1], 2 % of them 0, (n,) float32."""
    d = np.random.default_rng(n).beta(5, 3, n).astype(np.float32)
    d[: n // 50], d[-1] = 0, 1
    return d


class Learner:
    """Simulated losses that fall with exposure, for a run of `draws` draws of images with hardness `h` (N,)."""

    def __init__(self, h: np.ndarray, draws: int, spread: float) -> None:
        self._h, self._spread = h, spread
        self._bins = np.minimum((h * BINS).astype(np.int64), BINS - 1)
        self._members = np.bincount(self._bins, minlength=BINS)
        self._per_image = draws / len(h)  # draws of each image in the whole run
        self._bin_exposure, self._exposure, self._done, self._draws = np.zeros(BINS), 0.0, 0, draws
        self._rng = np.random.default_rng(0)

    def losses(self, ids: np.ndarray) -> np.ndarray:
        """Return the current losses of the images `ids` (n,)."""
        exposure = (self._bin_exposure[self._bins[ids]] + self._exposure) / 2
        loss = 0.35 + 0.65 * np.exp(-20 * np.exp(-2.5 * self._h[ids]) * exposure)
        return loss * (1 + self._spread * self._rng.standard_normal(len(ids)))

    def learn(self, ids: np.ndarray) -> None:
        """Add the exposure of the drawn images `ids` (n,)."""
        lr = min(1.0, (self._done + 1) / (WARM_UP * self._draws))
        self._done += len(ids)
        drawn = np.bincount(self._bins[ids], minlength=BINS)
        self._bin_exposure += lr * drawn / np.maximum(self._members, 1) / self._per_image
        self._exposure += lr * len(ids) / len(self._h) / self._per_image


def simulate(
    config: CurriculumConfig, samples: int, batch_size: int, windows: int, *, noise: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the effective fraction and the gradient's loss term over entropy term of each window, (windows,) both.

    Without `noise` the sums are exact expectations over p_tau, from losses without noise.
    """
    d = prototype_distances(samples)
    length = config.window_length(samples, batch_size)
    learned = LearnedTemperature(config, d, batch_size=batch_size, warm=math.ceil(WARM_UP * windows * length))
    plan = Plan(
        config,
        samples=samples,
        distances=d,
        draws=windows * length,
        batch_size=batch_size,
        seed=0,
        hash64=hash64,
        learned=learned,
    )
    h = config.hardness(d)
    learner = Learner(h, windows * length, 0.3 if noise else 0.0)
    fractions, ratios, all_ids = [], [], np.arange(samples)
    for number in range(windows):
        window = plan.window(number)
        fractions.append(window.effective_fraction)
        terms = learned.gradient(number)
        ratios.append(-terms.loss / terms.entropy if terms.entropy else 0.0)
        if noise:
            batch = SimpleNamespace(window=window, distances=torch.from_numpy(window.distances))
            sums = learned.observe(batch, torch.from_numpy(learner.losses(window.sample_ids))).tolist()
        else:
            p, loss = p_tau(h, window.temperature), learner.losses(all_ids)
            sums = [1.0, *(float((p * x).sum()) for x in (h, loss, h * loss, h.astype(np.float64) ** 2))]
        learner.learn(window.sample_ids)
        learned.update([SimpleNamespace(step=(number + 1) * length // batch_size, finite=True, measured=tuple(sums))])
    return np.array(fractions), np.array(ratios)


def row(label: str, fractions: np.ndarray, ratios: np.ndarray) -> None:
    places = [math.floor(point * len(fractions)) for point in POINTS]
    print(f"{label:<32}" + "".join(f"{fractions[place]:6.2f}" for place in places) + f"{ratios.max():8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eta", type=float, nargs="*", default=[CurriculumConfig.learned_eta], help="default 0.03")
    parser.add_argument("--beta", type=float, nargs="*", default=[CurriculumConfig.learned_beta], help="default 0.15")
    parser.add_argument("--longest", type=int, default=max(LENGTHS), help="windows of the longest run (default 3200)")
    parser.add_argument("--may-fall", action="store_true", help="let the temperature fall")
    arguments = parser.parse_args()
    for eta in arguments.eta:
        for beta in arguments.beta:
            print(f"\neta {eta:g}, beta {beta:g}{', may fall' if arguments.may_fall else ''}")
            print(f"{'draws, windows':<32}" + "".join(f"{point:6.0%}" for point in POINTS) + f"{'cov':>8}")
            config = CurriculumConfig(
                "proto",
                temp_schedule="learned",
                learned_eta=eta,
                learned_beta=beta,
                learned_may_fall=arguments.may_fall,
            )
            for samples, batch_size in SIZES:
                for windows in (length for length in LENGTHS if length <= arguments.longest):
                    label = f"{config.window_length(samples, batch_size):,} x {windows:,}"
                    row(label, *simulate(config, samples, batch_size, windows))
                    if samples == SIZES[0][0]:
                        row(label + ", clean", *simulate(config, samples, batch_size, windows, noise=False))


if __name__ == "__main__":
    main()
