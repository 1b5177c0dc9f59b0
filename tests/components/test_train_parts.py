"""The parts of a training by themselves: mixing, averaging, checkpoints, streams, settings."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from components import manifest
from components.store import StoreError
from components.train import __main__ as command
from components.train import batches, launch
from components.train.__main__ import _parser, _what_is_asked
from components.train.checkpoint import CheckpointMismatchError, Checkpoints, State, start_from
from components.train.distributed import Ranks, RanksError
from components.train.mix import Targets, mix
from components.train.optim import Average, StepGuard, build_optimizer, learning_rate
from components.train.settings import HOW, Settings, SettingsError, training_key
from tests.components import blobs

ROOT = Path(__file__).resolve().parents[2]

# ---- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float16"}, "train.precision='float16': expected one of auto, float32, bfl"),
        ({"optimizer": "adam"}, "expected one of adamw, sgd; the nearest is 'adamw'"),
        ({"loader": "torch"}, "train.loader='torch': expected one of auto, tarpon, dali"),
        (
            {"augment": "trivial2"},
            "augment='trivial2': expected one of .* nearest is 'trivial'",
        ),
        ({"augment": "rand", "loader": "tarpon"}, "train.augment='rand': found the tarpon loader"),
        ({"ema_decay": 1.0}, "train.ema_decay=1.0: expected a number from 0 to below 1"),
        ({"momentum": -0.1}, "train.momentum=-0.1: expected a number from 0 to below 1"),
        ({"accumulate": 0}, "train.accumulate=0: expected a whole number of at least 1"),
        ({"keep_checkpoints": 0}, "train.keep_checkpoints=0: expected a whole number"),
        ({"clip_norm": 0.0}, "train.clip_norm=0.0: expected a norm above 0, or null"),
        ({"mixup_alpha": -1.0}, "train.mixup_alpha=-1.0: expected 0 or more"),
        ({"cutmix_alpha": float("nan")}, "train.cutmix_alpha=nan: expected a finite number"),
        ({"start_from": ""}, "train.start_from='': expected the URL of a checkpoint, or null"),
        ({"processes": 0}, "train.processes=0: expected at least 1, or null"),
        ({"processes": 2, "device": "cuda:1"}, "1 or null on the one device 'cuda:1'"),
        (
            {"batch_size": 64, "processes": 3, "accumulate": 2},
            "train.batch_size=64: expected a multiple of 6, 3 processes times train.accumulate=2; "
            "use 60 or",
        ),
    ],
)
def test_settings_no_training_can_use(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**settings)


def test_how_a_training_runs_is_no_part_of_its_name() -> None:
    def key(**settings: Any) -> str:
        return training_key(Settings(**settings), digest="d", experiment="e")

    how = {"device": "cpu", "processes": 2, "accumulate": 2, "compile": True, "threads": 1,
           "checkpoint_every_s": 1.0, "keep_checkpoints": 9}  # fmt: skip
    assert set(how) == set(HOW)
    assert key(**how) == key()
    what = {"optimizer": "sgd", "ema_decay": 0.9, "mixup_alpha": 0.1, "precision": "bfloat16",
            "clip_norm": 1.0, "cosine": False, "augment": "rand", "momentum": 0.8}  # fmt: skip
    assert len({key(), *(key(**{name: value}) for name, value in what.items())}) == 1 + len(what)


def test_every_setting_is_an_option_of_the_command() -> None:
    words = "--dataset=d --output=o --processes=null --augment=null --clip-norm=2 --cosine=false"
    task, given = _what_is_asked(_parser().parse_args(words.split()))
    assert task is None
    assert Settings(**given) == Settings(clip_norm=2.0, cosine=False)
    assert launch.processes_wanted(Settings(**given)) == 1
    assert launch.processes_wanted(Settings(processes=4)) == 4
    said = " ".join(_parser().format_help().split())
    assert "--optimizer OPTIMIZER adamw or sgd (default: adamw)" in said
    assert "--clip-norm CLIP_NORM Largest norm of the gradient; null: any (default: null)" in said


@pytest.mark.parametrize(
    ("codes", "answer"),
    [
        ([143, 143], 143),
        ([130, 130], 130),
        ([143, -15], 143),
        ([-15, -15], 143),
        ([-2, -15], 130),
        ([1, 143], 1),
        ([-15, 1], 1),
        ([1, -9], 137),
        ([143, -9], 137),
    ],
)
def test_the_command_answers_with_what_a_rank_ended_with(
    codes: list[int], answer: int, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {rank: SimpleNamespace(exitcode=code) for rank, code in enumerate(codes)}
    assert launch._exit_code(failures) == answer
    assert ("rank 1 was ended by SIGKILL" in capsys.readouterr().err) == (answer == 137)


def test_a_launcher_that_is_process_1_of_a_container_keeps_its_ranks() -> None:
    """A rank's parent is process 1 there as well as where the launcher has ended."""
    code = (
        "import os\n"
        "from components.train import launch\n"
        "os.environ['TORCHELASTIC_RUN_ID'] = 'x'\n"
        "os.getppid = lambda: 1\n"
        "launch.die_with_launcher()\n"  # torchrun as process 1
        "os.environ[launch.LAUNCHER] = '1'\n"
        "launch.die_with_launcher()\n"  # our launcher as process 1
        "print('alive', flush=True)\n"
        "os.environ[launch.LAUNCHER] = '1234567'\n"
        "launch.die_with_launcher()\n"  # the launcher has ended
        "print('still alive', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("alive\n", -signal.SIGKILL), done.stderr


def test_a_truth_value_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--compile", "yes"])
    assert "--compile: invalid bool value: 'yes'" in capsys.readouterr().err


# ---- mixing ----------------------------------------------------------------------------------

IMAGE = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 8, 8).contiguous()
LABEL = torch.arange(6)


def test_nothing_is_mixed_unless_asked_for() -> None:
    image, targets = mix(IMAGE, LABEL, Settings(), epoch=0, step=0)
    assert image is IMAGE
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    assert targets.loss(logits, 0.1) == nn.functional.cross_entropy(
        logits, LABEL, label_smoothing=0.1
    )
    assert targets.correct(nn.functional.one_hot(LABEL).float()) == 6


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_labels_are_mixed_as_the_pixels_are(kind: str) -> None:
    settings = Settings(**{kind: 1.0})
    shares = set()
    for step in range(40):
        image, targets = mix(IMAGE, LABEL, settings, epoch=1, step=step)
        again, same = mix(IMAGE, LABEL, settings, epoch=1, step=step)
        assert torch.equal(image, again)
        assert same.share == targets.share
        assert torch.equal(targets.other, LABEL.roll(1))
        expected = targets.share * LABEL + (1 - targets.share) * targets.other
        torch.testing.assert_close(image.mean((1, 2, 3)), expected)
        if kind == "cutmix_alpha":
            assert set(image[3].unique().tolist()) <= {2.0, 3.0}
        shares.add(targets.share)
    assert torch.equal(IMAGE[:, 0, 0, 0], LABEL.float())  # the loader's memory is left alone
    assert min(shares) < 0.3 < 0.7 < max(shares)


def test_with_both_on_a_coin_decides() -> None:
    settings = Settings(mixup_alpha=1.0, cutmix_alpha=1.0)
    pasted = [
        bool((mix(IMAGE, LABEL, settings, epoch=0, step=step)[0][3] % 1 == 0).all())
        for step in range(60)
    ]
    assert 15 <= sum(pasted) <= 45


def test_a_mixed_loss_is_the_weighted_one_and_falls_apart_into_its_parts() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    targets = Targets(LABEL, LABEL.roll(1), 0.25)
    by_hand = 0.25 * nn.functional.cross_entropy(logits, LABEL)
    by_hand += 0.75 * nn.functional.cross_entropy(logits, LABEL.roll(1))
    torch.testing.assert_close(targets.loss(logits, 0.0), by_hand)
    parts = [
        part.loss(some, 0.0) for part, some in zip(targets.chunks(3), logits.chunk(3), strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), by_hand)


# ---- weights ---------------------------------------------------------------------------------


def test_the_average_follows_the_weights_and_the_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    average = Average(model, 0.5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, 30):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 4))
        model(torch.randn(8, 4))
        average.update(step, torch.zeros(()))
        share = 1 - min(0.5, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            mixed = expected[name] * (1 - share) + value * share
            expected[name] = mixed if value.is_floating_point() else value.clone()
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not any(p.requires_grad for p in average.model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_bad_step_and_what_follows_it_leave_no_trace(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no step needs torch._dynamo, whose import takes seconds."""
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    chosen = build_optimizer(model, Settings(optimizer=optimizer, momentum=0.5, lr=0.1))
    guard, average = StepGuard(model, chosen), Average(model, 0.5)

    def step(number: int, scale: float) -> list[torch.Tensor]:
        before = guard.statistics()
        chosen.zero_grad()
        loss = model(torch.randn(8, 4) * scale).square().sum() * scale
        loss.backward()
        guard.step(loss.detach().unsqueeze(0), before)
        average.update(number, guard.flag)
        kept = [*chosen.state_dict()["state"].values(), average.model.state_dict()]
        kept = [value for some in kept for value in some.values() if value is not None]
        return [value.clone() for value in [*kept, *model.state_dict().values()]]

    first, good = step(1, 1.0), step(2, 1.0)
    assert not any(torch.equal(one, other) for one, other in zip(first, good, strict=True))
    chosen.load_state_dict(chosen.state_dict())
    for number, scale in ((3, float("nan")), (4, 1.0)):
        after = step(number, scale)
        assert all(torch.equal(one, other) for one, other in zip(good, after, strict=True))


def test_optimisers_decay_filters_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        optimizer = build_optimizer(model, Settings(optimizer=name, weight_decay=0.3, momentum=0.7))
        assert type(optimizer) is kind
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
        assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]
    assert optimizer.param_groups[0]["momentum"] == 0.7


def test_without_a_cosine_the_rate_stays() -> None:
    rates = [
        learning_rate(Settings(epochs=4, lr=0.1, cosine=False), step, 10) for step in range(40)
    ]
    assert rates[0] < 0.02
    assert {*rates[10:]} == {0.1}


# ---- checkpoints -----------------------------------------------------------------------------


def state(step: int, **others: Any) -> State:
    given: dict[str, Any] = {
        "run_id": "r", "settings": Settings().identity(), "classes": ["a", "b"], "epoch": 0,
        "step": step, "sums": {}, "history": [],
        "model": {"w": torch.full((3,), float(step))}, "average": None, "optimizer": {},
        "loader": {},
    }  # fmt: skip
    return State(**given | others)


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    weight = torch.zeros(1000)
    with Checkpoints(tmp_path) as checkpoints:
        url = checkpoints.save(state(1, model={"w": weight}, optimizer={"s": [{"m": weight}]}))
        weight.fill_(7)  # the next step, while it is being written
        checkpoints.wait()
        assert not checkpoints.busy
    found = Checkpoints(tmp_path).load(Path(url).name)
    assert found.model["w"].abs().max() == 0
    assert found.optimizer["s"][0]["m"].abs().max() == 0


def test_the_newest_few_stay(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"checkpoint-{step:09d}.pt" for step in (4, 5, 6)
    ]


def test_one_that_is_saved_beside_the_others_takes_no_place(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state(4))
        url = checkpoints.save(state(6), beside=True)
        checkpoints.wait()
        assert checkpoints.newest() == url
        assert len(list(tmp_path.iterdir())) == 2


def test_another_training_s_checkpoint_is_begun_at_if_it_fits(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        url = checkpoints.save(state(5, mlflow=["{}"]))
    found = start_from(url, Settings(lr=1e-5, clip_norm=1.0), ["a", "b"])
    assert (found.step, found.run_id, found.mlflow) == (5, "", [])
    with pytest.raises(
        CheckpointMismatchError,
        match=r"^train.start_from=\S+.pt: found a checkpoint of train.batch_size=64, expected 32 "
        "as in this training; set train.batch_size=64, or train.start_from=null to begin again",
    ):
        start_from(url, Settings(batch_size=32), ["a", "b"])
    with pytest.raises(CheckpointMismatchError, match="a checkpoint of 2 classes, expected the 1"):
        start_from(url, Settings(), ["a"])
    Path(url).write_bytes(b"")
    with pytest.raises(CheckpointMismatchError, match=r"cannot be read \(\w+\), expected a check"):
        start_from(url, Settings(), ["a", "b"])
    Path(url).unlink()
    with pytest.raises(StoreError, match=url):
        start_from(url, Settings(), ["a", "b"])


def test_a_damaged_one_of_a_later_step_takes_no_place(tmp_path: Path) -> None:
    """Going on from the one before, the steps are counted from there."""
    (tmp_path / "checkpoint-000000300.pt").write_bytes(b"cut off")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state(250))
    assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint-000000250.pt"]


def test_every_damaged_one_is_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state(step))
    for step, size in ((2, 0), (3, 700)):
        path = tmp_path / f"checkpoint-{step:09d}.pt"
        path.write_bytes(path.read_bytes()[:size])
    with caplog.at_level(logging.WARNING):
        found = Checkpoints(tmp_path).load_newest()
    assert found is not None
    assert (found[0], found[1].step) == ("checkpoint-000000001.pt", 1)
    assert re.findall(r"checkpoint-\d+\.pt: cannot be read", caplog.text) == [
        "checkpoint-000000003.pt: cannot be read",
        "checkpoint-000000002.pt: cannot be read",
    ]
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert Checkpoints(tmp_path).load_newest() is None


def test_one_is_written_at_a_time_and_a_failure_comes_out(tmp_path: Path) -> None:
    folder = tmp_path / "made later"
    checkpoints = Checkpoints(folder)
    go = threading.Event()
    kind = type(checkpoints._store)

    def slow(self: Any, rel: str) -> Any:
        assert go.wait(30)
        return kind_open(self, rel)

    kind_open = kind.open_temp
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "open_temp", slow)
        checkpoints.save(state(1))
        assert checkpoints.busy
        go.set()
        checkpoints.wait()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file where the folder was")
    checkpoints.save(state(2))
    with pytest.raises(StoreError):
        checkpoints.save(state(3))
    checkpoints.save(state(4))
    with pytest.raises(StoreError), checkpoints:
        pass


def test_other_classes_than_the_checkpoint_s() -> None:
    state(1).require_classes(["a", "b"], "where")
    with pytest.raises(
        CheckpointMismatchError,
        match=r"where: found a checkpoint of 2 classes, expected the 3 of the dataset; the first "
        "that differs is None against 'c'; set train.fresh=true",
    ):
        state(1).require_classes(["a", "b", "c"], "where")
    with pytest.raises(CheckpointMismatchError, match="differs is 'b' against 'c'"):
        state(1).require_classes(["a", "c"], "where")


# ---- streams and ranks -----------------------------------------------------------------------


def of_all_ranks(kind: Any, url: str, world_size: int, **settings: Any) -> list[list[int]]:
    """The valid indices of each step of an epoch, sorted, over all ranks."""
    chosen = Settings(image_size=16, threads=1, **settings)
    steps: list[list[int]] = []
    for rank in range(world_size):
        ranks = Ranks(rank=rank, world_size=world_size)
        with kind(manifest.read(url), chosen, device="cpu", ranks=ranks) as stream:
            for number, batch in enumerate(stream):
                assert batch["image"].shape == (chosen.batch_size // world_size, 3, 16, 16)
                assert (batch["image"].dtype, batch["label"].dtype) == (torch.float32, torch.int64)
                if number == len(steps):
                    steps.append([])
                steps[number] += batch["indices"][batch["valid"]].tolist()
    return [sorted(step) for step in steps]


def test_every_number_of_ranks_takes_the_same_steps(tmp_path: Path) -> None:
    url = blobs.publish(tmp_path, train=50)
    alone = of_all_ranks(batches.train_stream, url, 1, batch_size=12)
    assert [len(step) for step in alone] == [12] * 4
    for world_size, accumulate in ((2, 1), (3, 2), (4, 1)):
        options = {"batch_size": 12, "accumulate": accumulate}
        assert of_all_ranks(batches.train_stream, url, world_size, **options) == alone


def test_every_val_sample_counts_once_for_any_number_of_ranks(tmp_path: Path) -> None:
    url = blobs.publish(tmp_path, val=13)
    for world_size in (1, 2, 3):
        steps = of_all_ranks(batches.val_stream, url, world_size, batch_size=6)
        assert Counter(index for step in steps for index in step) == Counter(range(13))


def test_augmentation_needs_dali_and_dali_needs_to_be_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert batches.pick_loader(Settings(), "cpu") == "tarpon"
    with pytest.raises(SettingsError, match=r"train.augment='auto': found the tarpon loader, expe"):
        batches.pick_loader(Settings(augment="auto"), "cpu")
    monkeypatch.setattr(batches, "_dali_is_there", lambda: False)
    assert batches.pick_loader(Settings(), "cuda") == "tarpon"
    with pytest.raises(batches.DaliMissingError, match=r"dali-cuda12\] for CUDA 12 or tarpon\[dal"):
        batches.pick_loader(Settings(loader="dali"), "cpu")
    monkeypatch.setattr(batches, "_dali_is_there", lambda: True)
    assert batches.pick_loader(Settings(), "cuda:1") == "dali"


def test_a_rank_that_waits_too_long_says_for_what() -> None:
    store = dist.HashStore()
    rank = Ranks(rank=1, world_size=2, store=store)
    with pytest.raises(
        RanksError, match=r"rank 1 of 2: waited up to 0.05 s for rank 0 to log the model \("
    ):
        rank.wait_for("log the model", timeout_s=0.05)
    Ranks(rank=0, world_size=2, store=store).say_done("log the model")
    rank.wait_for("log the model", timeout_s=30)


def test_one_process_needs_no_others() -> None:
    alone = Ranks()
    assert alone.share("x", "y") == "x"
    assert alone.gather(3, "y") == [3]
    assert alone.add(torch.ones(2), "y").tolist() == [1, 1]
    assert alone.threads is None
    alone.wait_for("anything")
    network = nn.Linear(1, 1)
    assert alone.parallel(network) is network
