"""Misspelt keys, wrong types and impossible values fail at composition and say what to do."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pipelines.compose import load, nearest
from pipelines.config import ConfigError


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("train.epoch=5", "train.epochs"),
        ("epochs=5", "train.epochs"),
        ("tran.epochs=5", "train.epochs"),
        ("+train.epoch=5", "train.epochs"),
        ("data.sources=photos", "data.source"),
        ("mlflow.url=x", "mlflow.uri"),
        ("split.fraction=[.8,.1,.1]", "split.fractions"),
        ("dat=photos", "data"),
        ("pod@pod.tain=gpu", "pod@pod.train"),
        ("untl=shard", "until"),
    ],
)
def test_misspelt_key_names_the_nearest(override: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([override])
    key = override.lstrip("+").partition("=")[0]
    assert f"there is no key {key!r}, the nearest is {near!r};" in str(caught.value)
    assert "--help" in str(caught.value)


def test_a_key_like_no_other_gets_no_guess() -> None:
    assert nearest("zzzzqqqq") is None
    with pytest.raises(ConfigError, match="there is no key 'zzzzqqqq'; "):
        load(["zzzzqqqq=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=three", "train.epochs='three': expected a whole number"),
        ("train.epochs=64.0", "train.epochs='64.0': expected a whole number"),
        ("train.lr=fast", "train.lr='fast': expected a number"),
        ("ingest.workers=many", "ingest.workers='many': expected a whole number or null"),
        ("split.fractions=half", r"split.fractions='half': expected a list of numbers"),
        ("train.epochs=null", "train.epochs='null': expected a whole number"),
    ],
)
def test_wrong_type_says_what_is_expected(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split.fractions=[.8,.1]"], "three shares"),
        (["split.fractions=[.8,.1,.2]"], "sum to 1"),
        (["split.fractions=[0,.5,.5]"], "the first above 0"),
        (["split.strategy=stratifed"], "one of random, stratified, group"),
        (["split.by=camera"], "set split.strategy=group"),
        (["until=shards"], "a step: ingest, profile"),
        (["data.version=v1", "until=split"], "nothing is left to run"),
        (["data.name=a/b"], "choose a plainer name"),
        (["train.epochs=0"], "train.epochs=0: expected at least 1"),
        (["train.lr=0"], "train.lr=0.0: expected a number above 0"),
        (["train.device=gpu"], "auto, cpu, cuda"),
        (["register.min_accuracy=93"], "0 to 1"),
        (["action=submit"], "supported are run, compile; compile the pipeline"),
        (["action=deploy"], "one of run, compile"),
        (["action=compile"], "output=pipeline.yaml"),
        (["train=huge"], "there is no configs/train/huge.yaml; choose one of default, gpu"),
        (["mlflow=clustr"], "the nearest is 'cluster'"),
        (["experiment=none"], "choose one of smoke, spot"),
        (["photos"], "found 'photos', expected key=value pairs"),
        (["split.fractions=[.8,.1"], "split.fractions='[.8,.1': expected a list of numbers"),
    ],
)
def test_impossible_values_say_what_to_do(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "path", ["~/photos", "/a b/c (2), d", "a=b", "it's", "back\\slash", "a,b", "[a", "$HOME"]
)
def test_paths_are_taken_as_they_are_typed(path: str) -> None:
    assert load([f"data.source={path}"]).data.source == path


def test_a_mistake_in_a_file_names_the_file(tmp_path, monkeypatch) -> None:
    import shutil

    from pipelines import compose

    tree = tmp_path / "configs"
    shutil.copytree(compose.CONFIGS, tree)
    (tree / "train" / "mine.yaml").write_text("defaults: [default]\nepoch: 3\n")
    (tree / "train" / "words.yaml").write_text("defaults: [default]\nepochs: three\n")
    monkeypatch.setattr(compose, "CONFIGS", tree)
    with pytest.raises(ConfigError) as caught:
        load(["train=mine"])
    assert str(caught.value).startswith("configs/train/mine.yaml: there is no key 'train.epoch'")
    assert "'train.epochs'" in str(caught.value)
    with pytest.raises(ConfigError, match=r"configs/train/words\.yaml: train\.epochs='three'"):
        load(["train=words"])


def test_the_result_is_frozen() -> None:
    config = load([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 3  # type: ignore[misc]


def test_json_keeps_types_and_leaves_addresses_out() -> None:
    config = load(["store.endpoint=http://minio:9000", "mlflow.uri=http://me:secret@mlflow"])
    text = config.to_json()
    found = json.loads(text)
    assert json.dumps(found, sort_keys=True) == text
    assert "minio" not in text
    assert "secret" not in text
    assert found["train"] == dataclasses.asdict(config.train)
    assert [type(v) for v in (found["train"]["epochs"], found["train"]["lr"])] == [int, float]
    assert set(found) == {
        *("data", "store", "ingest", "split", "shard", "train", "evaluate", "register"),
        *("mlflow", "until"),
    }
    assert found["store"] == {"root": "tarpon-data"}
    assert found["mlflow"] == {"experiment": "tarpon"}


def test_same_settings_same_text_in_any_order() -> None:
    one = load(["train.lr=1e-3", "data.name=flowers"]).to_json()
    assert one == load(["data.name=flowers", "train.lr=0.001"]).to_json()
    assert one != load([]).to_json()


def test_composing_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    load(["experiment=smoke"])
    assert list(tmp_path.iterdir()) == []
