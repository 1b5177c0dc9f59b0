"""Misspelt keys, wrong types and impossible values fail at composition and say what to do."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st

from components import catalog, loading
from components.ingest.run import ingest
from components.shard.plan import plan
from components.split.run import Options as SplitOptions
from components.train.settings import Settings
from pipelines.compose import _quoted, load, nearest
from pipelines.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]


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
        (["split.fractions=[0,.5,.5]"], "train above 0"),
        (["split.fractions=[.8,.2,0]"], "raise it, or set until=train"),
        (["split.strategy=stratifed"], "one of random, stratified, group"),
        (["split.by=camera"], "set split.strategy=group"),
        (["split.near_duplicate_bits=40"], "expected 0 to 12 differing bits"),
        (["split=group"], "ingest.group=None: split.strategy='group' keeps groups together"),
        (["ingest.group=["], "ingest.group='[': not a regular expression"),
        (["ingest.group=cam"], "found nothing in (..)"),
        (["ingest.max_pixels=999999999"], "the most that training decodes"),
        (["shard.max_bytes=1"], "the smallest tar there is"),
        (["data.name=blümen"], "expected ASCII letters"),
        (["data.version=catalog"], "expected another name than catalog"),
        (["register.name=a/b"], "register.name='a/b': expected ASCII letters"),
        (["train.lr=inf"], "train.lr=inf: expected a finite number"),
        (["train.device=cuda:x"], "auto, cpu, cuda"),
        (["until=shards"], "a step: ingest, profile"),
        (["data.version=v1", "until=split"], "nothing is left to run"),
        (["data.name=a/b"], "choose a plainer name"),
        (["train.epochs=0"], "train.epochs=0: expected a whole number of at least 1"),
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


@pytest.mark.parametrize(
    "pattern", [r"([^/]+)-\d+\.jpg$", r"(\w+)_", "^(a|b)", r"x\(1\)(.)", "(a){2,3}"]
)
def test_regular_expressions_are_taken_as_they_are_typed(pattern: str) -> None:
    assert load([f"ingest.group={pattern}"]).ingest.group == pattern
    assert load([f"+ingest.group={pattern}"]).ingest.group == pattern


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), min_size=1))
def test_any_text_is_taken_as_it_is_typed(text: str) -> None:
    """But for what has a meaning: null, quotes around all of it, and OmegaConf's ``${..}``."""
    assume(text != "null" and not (len(text) > 1 and text[0] == text[-1] in "'\""))
    (parsed,) = OverridesParser.create().parse_overrides([_quoted(f"data.source={text}")])
    assert parsed.value() == text


def test_text_can_still_be_quoted_unset_or_taken_from_the_shell(monkeypatch) -> None:
    monkeypatch.setenv("WHERE", "here")
    assert load(["data.source='a b'"]).data.source == "a b"
    assert load(["data.source=null"]).data.source is None
    assert load(["data.source=${oc.env:WHERE}/x"]).data.source == "here/x"


@pytest.mark.parametrize("key", ["data.source", "store.root"])
@pytest.mark.parametrize("url", ["s3://me:hunter2@b/x", "https://b/x?sig=hunter2"])
def test_a_place_with_credentials_is_refused_and_not_shown(key: str, url: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: it carries credentials") as caught:
        load([f"{key}={url}"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "typed",
    [" mlflow.uri={}", "store.endpoints={}", "{}", "train.epochs={}", "data={}"],
)
def test_no_error_repeats_a_password(typed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([typed.format("http://bob:hunter2@host/?sig=hunter2")])
    assert "hunter2" not in str(caught.value)


TRIED = [
    *(("data", "name", v) for v in ("a", "a.b-c_1", "", "-a", "a b", "blümen", "a/b")),
    *(("split", "strategy", v) for v in ("random", "group", "stratifed")),
    *(("split", "fractions", v) for v in ([0.8, 0.1, 0.1], [1, 0, 0], [0.5, 0.5], [1.1, -0.1, 0])),
    *(("split", "near_duplicate_bits", v) for v in (None, 0, 12, 13, 40, -1)),
    *(("shard", "max_bytes", v) for v in (1, 10_239, 10_240)),
    *(("ingest", "max_pixels", v) for v in (0, 1, 178_956_970, 178_956_971)),
    *(("ingest", "group", v) for v in (None, "(a)", "a", "(")),
    *(("train", "device", v) for v in ("auto", "cuda:1", "cuda:", "gpu")),
    *(("train", "image_size", v) for v in (15, 16)),
    *(("train", "label_smoothing", v) for v in (0.0, 1.0)),
    *(("train", "checkpoint_every_s", v) for v in (0.0, 0.5)),
]


@pytest.mark.slow  # together
@pytest.mark.parametrize(("section", "key", "value"), TRIED, ids=str)
def test_what_a_step_would_refuse_is_refused_here_and_nothing_else(
    tmp_path, section: str, key: str, value: object
) -> None:
    """The steps' own verdicts: each gets as far as its check, then finds no data."""

    def accepts(call) -> bool:
        try:
            call()
        except (ValueError, OSError, loading.DeviceError) as error:
            return not re.match(rf"{section}\.{key}\b", str(error))
        return True

    def step() -> object:
        nowhere, given = str(tmp_path / "nothing"), {key: value}
        if section == "data":
            return catalog.check_name(str(value))
        if section == "ingest":
            return ingest(nowhere, root=str(tmp_path), name="a", **given)
        if section == "split":
            return SplitOptions(**given)
        if section == "shard":
            return plan(nowhere, root=str(tmp_path), name="a", **given)
        if key == "device":
            return loading.pick_device(str(value), cuda=9)
        return Settings(**given)

    config = load([])
    part = getattr(config, section)
    assert accepts(lambda: dataclasses.replace(part, **{key: value})) == accepts(step)


def test_checking_settings_needs_no_torch_and_no_mlflow() -> None:
    code = (
        "import sys, pipelines.compose; pipelines.compose.load(); "
        "print(sorted({'torch', 'mlflow', 'pyarrow', 'kfp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


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
