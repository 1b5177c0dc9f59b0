"""Every option of every group composes, and the keys that people type keep their names."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import tomllib

import pytest

from components.ingest import run as ingest_run
from components.shard import plan
from components.split import run as split_run
from components.train import run as train_run
from components.train.settings import Settings
from pipelines import compose
from pipelines.compose import CONFIGS, groups, load
from pipelines.config import Config, key_types

KEPT_KEYS = [
    *("data.source", "data.name", "data.version", "store.root", "store.endpoint", "until"),
    *("split.strategy", "split.by", "split.fractions", "mlflow.uri", "mlflow.experiment"),
    *("train.epochs", "train.batch_size", "train.image_size", "train.lr", "train.seed"),
    *("train.model", "train.device"),
]

# Arguments of train() that are no part of what decides its result.
ONCE = {"allow_unproven", "fresh"}

ROOT = CONFIGS.parent

OPTIONS = [(group, option) for group, options in groups().items() for option in options]


@pytest.mark.parametrize("key", KEPT_KEYS)
def test_keys_that_people_type_exist(key: str) -> None:
    assert key in key_types()


@pytest.mark.parametrize(
    ("group", "option"), [pair for pair in OPTIONS if pair[0] not in ("pod", "local")]
)
def test_every_option_composes(group: str, option: str) -> None:
    needed = ["ingest.group=(.)-"] if (group, option) == ("split", "group") else []
    assert isinstance(load([f"{group}={option}", *needed]), Config)


@pytest.mark.parametrize("option", groups()["pod"])
@pytest.mark.parametrize("place", ["cpu", "train", "evaluate"])
def test_every_pod_profile_fits_every_place(option: str, place: str) -> None:
    profile = getattr(load([f"pod@pod.{place}={option}"]).pod, place)
    assert (profile.gpus > 0) == option.startswith("gpu")


def test_all_groups_were_looked_at() -> None:
    assert set(groups()) - {"local"} == {
        *("data", "store", "ingest", "split", "shard", "train", "evaluate", "register"),
        *("mlflow", "pod", "experiment"),
    }
    assert len(OPTIONS) >= 18


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("experiment/*.yaml")), ids=lambda f: f.stem)
def test_experiments_say_why_they_exist(file) -> None:
    header, reason, *_ = file.read_text(encoding="utf-8").splitlines()
    assert header == "# @package _global_"
    assert re.match(r"# \w.{30,}", reason)


def test_experiment_spot_changes_model_and_pods() -> None:
    config = load(["experiment=spot", "train.epochs=3"])
    assert (config.train.model, config.train.epochs) == ("resnet50", 3)
    assert config.pod.train.node_selector
    assert config.pod.evaluate.node_selector == {}


def test_a_local_file_is_read_last_but_for_the_command_line(tmp_path, monkeypatch) -> None:
    tree = tmp_path / "configs"
    shutil.copytree(CONFIGS, tree, ignore=shutil.ignore_patterns("local"))
    (tree / "local").mkdir()
    (tree / "local" / "default.yaml").write_text(
        "# @package _global_\ntrain: {epochs: 3, lr: 0.1}\n"
    )
    monkeypatch.setattr(compose, "CONFIGS", tree)
    train = load(["train.lr=0.2"]).train
    assert (train.epochs, train.lr) == (3, 0.2)


def test_labels_claims_and_secrets_have_free_keys() -> None:
    given = ["pod.cpu.volumes={tarpon-data:/data}", "pod.train.node_selector.zone=a"]
    pods = load(given).pod
    assert pods.cpu.volumes == {"tarpon-data": "/data"}
    assert pods.train.volumes == {}
    assert pods.train.node_selector == {"zone": "a"}


def test_settings_of_a_step_are_the_keys_of_its_section() -> None:
    """A step takes its section as keyword arguments: a key more or less would fail at run time."""

    def section(name: str) -> set[str]:
        return {key.partition(".")[2] for key in key_types() if key.startswith(f"{name}.")}

    settings = {item.name for item in dataclasses.fields(Settings)}
    assert section("train") == settings | ONCE
    assert set(inspect.signature(train_run.train).parameters) >= ONCE
    assert section("split") <= set(inspect.signature(split_run.split).parameters)
    arguments = set(inspect.signature(ingest_run.ingest).parameters)
    assert section("ingest") == arguments - {"source", "root", "name"}
    assert section("shard") <= set(inspect.signature(plan.plan).parameters)


MODELS = [
    load([f"{group}={option}"]).train.model
    for group in ("train", "experiment")
    for option in groups()[group]
]


@pytest.mark.parametrize("model", sorted(set(MODELS)))
def test_every_model_that_a_file_names_can_be_built_in_the_image(model: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (chosen,) = re.findall(r"^ARG EXTRAS=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    installed = [
        package for extra in chosen.split(",") for package in extras["optional-dependencies"][extra]
    ]
    assert model == "convnet" or any(re.match(r"torchvision\b", name) for name in installed)


def test_defaults_by_hand_and_by_config_are_the_same() -> None:
    configured = dataclasses.asdict(load([]).train)
    assert {key: configured.pop(key) for key in ONCE} == dict.fromkeys(ONCE, False)
    assert configured == dataclasses.asdict(Settings())
