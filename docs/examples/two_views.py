"""SimSiam (Chen and He, CVPR 2021, arXiv 2011.10566): two views of each image should predict each other.

    python docs/examples/two_views.py SHARDS

No prototypes are needed: every epoch has every image once.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from mimcl.api import Loader

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--epochs", type=float, default=10)
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--print-every", type=int, default=100, help="steps")
args = parser.parse_args()


def change_colours(images: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of uint8 images (n, 3, H, W), of each its own; return floats to 1."""
    brightness, contrast, saturation = 0.6 + 0.8 * torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = images / 255 * brightness
    images = torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast)
    return torch.lerp(images.mean(1, keepdim=True), images, saturation).clamp(0, 1)


loader = Loader(
    args.shards,
    batch_size=args.batch_size,
    image_size=args.image_size,
    epochs=args.epochs,
    views=2,  # each with its own crop and flip
    transform=change_colours,  # of each view; torch's generator is seeded by the draw, so that it repeats exactly
    normalize=True,
)
torch.manual_seed(0)
encoder = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU())
encoder.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 64), nn.BatchNorm1d(64)]).to(loader.device)
predictor = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 64)).to(loader.device)
optimizer = torch.optim.SGD([*encoder.parameters(), *predictor.parameters()], lr=0.05, momentum=0.9)

for batch in loader:
    first, second = batch.images  # (2, n, 3, H, W)
    z1, z2 = encoder(first), encoder(second)
    p1, p2 = predictor(z1), predictor(z2)
    loss = -(cosine_similarity(p1, z2.detach()) + cosine_similarity(p2, z1.detach())).mean() / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (batch.step + 1) % args.print_every == 0:
        print(f"step {batch.step + 1} of {len(loader)}: loss {loss.item():.3f}", flush=True)
