"""RHO-LOSS (Mindermann et al., ICML 2022, arXiv 2206.07137): draw images whose loss can still fall.

    python docs/examples/plain.py HELD_OUT --curriculum none --out reference.pt
    torchrun --nproc-per-node 2 docs/examples/reducible_loss.py SHARDS reference.pt

The score of an image is its loss minus its loss in a reference model, trained on other images of the same classes.
"""

import argparse
import os

import torch
from accelerate import Accelerator
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from mimcl.api import Curriculum, Loader

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("reference", help="checkpoint of plain.py")
for flag, default in {"epochs": 10.0, "batch-size": 256, "image-size": 224, "window": 50, "out": "rho.pt"}.items():
    parser.add_argument(f"--{flag}", type=type(default), default=default)
args = parser.parse_args()
accelerator = Accelerator(cpu=not torch.cuda.is_available())
sizes = {"batch_size": args.batch_size, "image_size": args.image_size, "device": accelerator.device, "normalize": True}
torch.manual_seed(0)
layers = nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
model = nn.Sequential(*layers, nn.Linear(32, 1000)).to(accelerator.device)
reference = torch.load(args.reference, map_location=accelerator.device.type, weights_only=True)["model"]
uniform = Loader(args.shards, epochs=1, **sizes)
known = torch.zeros(uniform.samples, device=accelerator.device)
for batch in uniform:
    losses = cross_entropy(functional_call(model, reference, batch.images), batch.labels, reduction="none")
    known.index_copy_(0, *accelerator.gather((batch.sample_ids.to(accelerator.device), losses)))

anti = Curriculum("anti", window=args.window * args.batch_size)  # high scores first
# Of as many draws as images, 30 % are different images. log(1000) = 6.9 is the loss of an untrained model.
loader = Loader(args.shards, epochs=args.epochs, scores=6.9 - known, curriculum=anti, schedule=lambda t: 0.3, **sizes)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
parts = {"model": accelerator.unwrap_model(model), "optimizer": optimizer, "loader": loader}
saved = torch.load(args.out, map_location="cpu", weights_only=True) if os.path.exists(args.out) else {}
for name in saved:
    parts[name].load_state_dict(saved[name])
window = []
for batch in loader:
    losses = cross_entropy(model(batch.images), batch.labels, reduction="none")
    optimizer.zero_grad()
    accelerator.backward(losses.mean())
    optimizer.step()
    window.append((batch.sample_ids.to(accelerator.device), losses.detach()))
    if (batch.step + 1) % args.window == 0 or batch.step + 1 == len(loader):
        ids, losses = (torch.cat(accelerator.gather(column)) for column in zip(*window, strict=True))
        loader.update_scores(ids, losses - known[ids])
        window.clear()
        accelerator.print(f"step {batch.step + 1} of {len(loader)}: loss {losses.mean():.3f}")
        accelerator.save({name: part.state_dict() for name, part in parts.items()}, f"{args.out}.part")
        accelerator.on_main_process(os.replace)(f"{args.out}.part", args.out)
