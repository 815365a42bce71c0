"""A loop in plain PyTorch: stopped at any moment and started again, it continues with exactly the same draws.

    mimcl shard IMAGES --out SHARDS
    mimcl prototypes build --data SHARDS
    python docs/examples/plain.py SHARDS

Images near to their prototype are drawn first.
"""

import argparse
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mimcl.api import Loader

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--out", type=Path, default=Path("plain.pt"), help="checkpoint, from which it continues")
parser.add_argument("--curriculum", default="proto", choices=["none", "proto", "anti"])
parser.add_argument("--epochs", type=float, default=10)
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--save-every", type=int, default=100, help="steps")
args = parser.parse_args()

loader = Loader(
    args.shards,
    batch_size=args.batch_size,
    image_size=args.image_size,
    epochs=args.epochs,
    curriculum=args.curriculum,
    normalize=True,
)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU())
model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1000)]).to(loader.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

parts = {"model": model, "optimizer": optimizer, "loader": loader}
if args.out.exists():
    saved = torch.load(args.out, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])

for batch in loader:
    loss = cross_entropy(model(batch.images), batch.labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (batch.step + 1) % args.save_every == 0 or batch.step + 1 == len(loader):
        print(f"step {batch.step + 1} of {len(loader)}: loss {loss.item():.3f}", flush=True)
        torch.save({name: part.state_dict() for name, part in parts.items()}, f"{args.out}.part")
        os.replace(f"{args.out}.part", args.out)  # there is always a complete checkpoint
