"""A loop of Accelerate: any number of processes draws what one process draws, each its share of every batch.

    pip install ".[examples]"
    torchrun --nproc-per-node 2 docs/examples/accelerate_loop.py SHARDS

Another number of processes may continue from its checkpoints.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from mimcl.api import Loader

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--out", type=Path, default=Path("accelerate-run"), help="folder of the checkpoints")
parser.add_argument("--epochs", type=float, default=10)
parser.add_argument("--batch-size", type=int, default=256, help="of all processes together")
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--save-every", type=int, default=100, help="steps")
args = parser.parse_args()

# Before the loader, whose share is that of this process. Without `cpu`, it connects only processes with GPUs.
accelerator = Accelerator(cpu=not torch.cuda.is_available())
loader = Loader(
    args.shards,
    batch_size=args.batch_size,
    image_size=args.image_size,
    epochs=args.epochs,
    curriculum="proto",
    normalize=True,
    device=accelerator.device,
)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU())
model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1000)])
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
accelerator.register_for_checkpointing(loader)  # save_state and load_state have its state
if complete := sorted(args.out.glob("step-*")):
    accelerator.load_state(complete[-1])

for batch in loader:
    loss = cross_entropy(model(batch.images), batch.labels)
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    step = batch.step + 1
    if step % args.save_every == 0 or step == len(loader):
        accelerator.print(f"step {step} of {len(loader)}: loss {accelerator.reduce(loss.detach(), 'mean'):.3f}")
        accelerator.save_state(args.out / "unfinished")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (args.out / "unfinished").rename(args.out / f"step-{step:08d}")
accelerator.end_training()
