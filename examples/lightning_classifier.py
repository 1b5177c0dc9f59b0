"""Train an image classifier with Lightning; a killed run goes on with the very next batch.

    python examples/lightning_classifier.py train.json val.json --classes 10
    python examples/lightning_classifier.py train.json val.json --classes 10 \
        --resume lightning/checkpoints/last.ckpt

Needs `pip install lightning`. Shards: anything `tarpon.Loader` takes, with `.jpg` and `.cls`.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import tarpon
import tarpon.torch
import torch
import torchmetrics
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn


class Photos(lightning.LightningDataModule):
    """Whole batches from the loader's own threads: no DataLoader and no worker processes.

    Lightning moves what it is given to the device and saves its `state_dict()` with every
    checkpoint. It asks for both loaders once the process group is up, which is what tells each
    rank its share.
    """

    def __init__(self, train: str, val: str, *, batch_size: int, size: int) -> None:
        super().__init__()
        self.train, self.val, self.batch_size, self.size = train, val, batch_size, size
        self.floats: Any = {
            "dtype": "float32",
            "layout": "NCHW",
            "mean": (123.7, 116.3, 103.5),
            "std": (58.4, 57.1, 57.4),
        }

    def train_dataloader(self) -> tarpon.torch.IterableDataset:
        return tarpon.torch.IterableDataset(
            self.train,
            batch_size=self.batch_size,
            fields={
                "image": tarpon.RandomResizedCrop(self.size, **self.floats),
                "label": tarpon.Int("cls"),
            },
            seed=17,
        )

    def val_dataloader(self) -> tarpon.torch.IterableDataset:
        resize = round(self.size * 256 / 224)
        return tarpon.torch.IterableDataset(
            self.val,
            batch_size=self.batch_size,
            fields={
                "image": tarpon.CenterCrop(self.size, resize, **self.floats),
                "label": tarpon.Int("cls"),
            },
            shuffle=False,
            last="pad",  # every rank gets as many batches; `valid` is False for the padding
        )


class Classifier(lightning.LightningModule):
    """A small network; `torchvision.models.resnet18(num_classes=...)` fits in its place."""

    def __init__(self, classes: int, *, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.network = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, classes),
        )
        self.accuracy = torchmetrics.MeanMetric()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.network(batch["image"]), batch["label"])
        self.log("train_loss", loss, batch_size=len(batch["label"]))
        return loss

    def on_validation_start(self) -> None:
        # The sanity check breaks off after two batches, and the next `for` would give the rest.
        self.trainer.val_dataloaders.set_epoch(0)

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        hits = self.network(batch["image"]).argmax(dim=1) == batch["label"]
        self.accuracy.update(hits.float(), weight=batch["valid"].float())
        self.log("val_accuracy", self.accuracy, prog_bar=True)


def main(arguments: list[str] | None = None) -> lightning.Trainer:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=64, help="per rank")
    parser.add_argument("--size", type=int, default=96, help="of the crops, in pixels")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ...")
    parser.add_argument("--folder", default="lightning", help="for logs and checkpoints")
    parser.add_argument("--save-every", type=int, default=100, help="in steps")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    options = parser.parse_args(arguments)

    lightning.seed_everything(17)
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        default_root_dir=options.folder,
        log_every_n_steps=10,
        callbacks=ModelCheckpoint(
            f"{options.folder}/checkpoints",
            every_n_train_steps=options.save_every,
            save_top_k=-1,
            save_last=True,
        ),
    )
    trainer.fit(
        Classifier(options.classes, lr=options.lr),
        datamodule=Photos(
            options.train, options.val, batch_size=options.batch_size, size=options.size
        ),
        ckpt_path=options.resume,
    )
    return trainer


if __name__ == "__main__":
    main()
