"""The Lightning example trains, sees all of its data, and goes on after any checkpoint."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import lightning
import pytest
import tarpon
import torch
from lightning.fabric.utilities.types import _Stateful

from examples import lightning_classifier as example
from tests.loader.tars import samples, write_tar

pytestmark = [
    # What Lightning says about a small run on a machine without a GPU, and its own imports.
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*tensorboard:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning"),
]
STEPS, EPOCHS, VAL = 10, 3, 55


@dataclass(slots=True)
class Seen:
    """Sample numbers by batch, as the steps of the module got them."""

    train: list[list[int]] = field(default_factory=list)
    val: list[list[int]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    seen = Seen()
    train, val = example.Classifier.training_step, example.Classifier.validation_step

    def training_step(self, batch, number):
        seen.train.append(batch["indices"].tolist())
        return train(self, batch, number)

    def validation_step(self, batch, number):
        seen.val.append(batch["indices"][batch["valid"]].tolist())
        return val(self, batch, number)

    monkeypatch.setattr(example.Classifier, "training_step", training_step)
    monkeypatch.setattr(example.Classifier, "validation_step", validation_step)
    yield seen
    gc.collect()  # progress bars print a line when they go: here, not in another test


def run(folder: Path, *arguments: str) -> lightning.Trainer:
    options = ["--classes=10", "--batch-size=10", "--size=16", "--save-every=1"]
    options += ["--accelerator=cpu", f"--epochs={EPOCHS}", f"--folder={folder}"]
    paths = [str(folder.parent / "train.tar"), str(folder.parent / "val.tar")]
    return example.main([*paths, *options, *arguments])


def weights(trainer: lightning.Trainer) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in trainer.lightning_module.parameters()])


@pytest.mark.slow
def test_it_trains_and_resumes_on_the_next_batch_after_any_checkpoint(
    tmp_path: Path, seen: Seen
) -> None:
    write_tar(tmp_path / "train.tar", samples(range(STEPS * 10 + 3)))
    write_tar(tmp_path / "val.tar", samples(range(VAL)))
    trainer = run(tmp_path / "whole")
    whole = list(seen.train)
    with tarpon.Loader(tmp_path / "train.tar", batch_size=10, seed=17) as loader:
        assert whole == [batch.indices.tolist() for _ in range(EPOCHS) for batch in loader]
    sanity, passes = seen.val[:2], seen.val[2:]
    assert [index for batch in sanity for index in batch] == list(range(20))
    assert [index for batch in passes for index in batch] == list(range(VAL)) * EPOCHS
    assert 0 <= trainer.callback_metrics["val_accuracy"] <= 1

    saved = {
        int(path.stem.split("step=")[1]): path
        for path in (tmp_path / "whole" / "checkpoints").glob("epoch=*.ckpt")
    }
    assert sorted(saved) == list(range(1, EPOCHS * STEPS + 1))
    for step in (1, 4, 9, 10, 11, 17, 20, 29):
        seen.train.clear()
        resumed = run(tmp_path / f"from{step}", f"--resume={saved[step]}")
        assert seen.train == whole[step:], step
        assert torch.equal(weights(resumed), weights(trainer)), step


def test_lightning_takes_both_for_stateful(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", samples(range(30)))
    photos = example.Photos(
        str(tmp_path / "train.tar"), str(tmp_path / "train.tar"), batch_size=10, size=16
    )
    with tarpon.Loader(tmp_path / "train.tar", batch_size=10) as loader:
        assert isinstance(loader, _Stateful)
    assert isinstance(photos.train_dataloader(), _Stateful)
    assert (len(photos.train_dataloader()), len(photos.val_dataloader())) == (3, 3)
