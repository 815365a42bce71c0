"""A loop of Lightning, whose checkpoints have the loader's state: it continues in the middle of an epoch.

    pip install ".[examples]"
    python docs/examples/lightning_loop.py SHARDS --devices 1

The batches are those of plain.py, on any number of devices.
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mimcl.api import Loader, LoaderBatch

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--out", default="lightning-run", help="folder of the checkpoints, from which it continues")
parser.add_argument("--epochs", type=float, default=10)
parser.add_argument("--batch-size", type=int, default=256, help="of all devices together")
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--save-every", type=int, default=100, help="steps")
parser.add_argument("--devices", type=int, default=1)


class Classifier(LightningModule):
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        self.network = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU())
        self.network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1000)])

    def train_dataloader(self) -> Loader:  # here Lightning has connected the processes, each of which gets its share
        sizes = {"batch_size": self.args.batch_size, "image_size": self.args.image_size, "epochs": self.args.epochs}
        return Loader(self.args.shards, **sizes, curriculum="proto", normalize=True, device=self.device)

    def training_step(self, batch: LoaderBatch) -> Tensor:
        loss = cross_entropy(self.network(batch.images), batch.labels)
        self.log("loss", loss, batch_size=len(batch.labels))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


if __name__ == "__main__":
    args = parser.parse_args()
    torch.manual_seed(0)
    # The loader's length is the whole run, so one epoch of Lightning is: validate with val_check_interval=STEPS.
    save = ModelCheckpoint(args.out, save_last=True, every_n_train_steps=args.save_every)
    trainer = Trainer(max_epochs=1, callbacks=[save], devices=args.devices, default_root_dir=args.out)
    trainer.fit(Classifier(args), ckpt_path="last")  # without a checkpoint it starts
    print(f"step {trainer.global_step}: loss {trainer.callback_metrics['loss']:.3f}")
