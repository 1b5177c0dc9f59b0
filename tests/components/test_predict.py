"""Predict: a row per image, the same files whoever writes them and however often it is killed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from kfp import compiler
from tarpon.fields import IMAGE_EXTENSIONS

from components import logged_model, patience
from components import tracking as mlflow_seam
from components.loading import EmptySplitError
from components.predict import __main__ as command
from components.predict import parts, run
from components.predict.component import predict as predict_component
from components.predict.scorer import NonFiniteScoresError, Scorer
from components.store import Store
from tests.components import blobs, colours
from tests.components.conftest import Trained
from tests.servers.s3 import S3Server

ROOT = Path(__file__).resolve().parents[2]
BATCH, PART, SAMPLES = 4, 8, 27  # four parts, the last of three samples


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return colours.save(tmp_path_factory.mktemp("colours") / "model")


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Two tars without labels."""
    tars = [tmp_path / "a-000000.tar", tmp_path / "a-000001.tar"]
    write_tar(tars[0], photos(0, 15))
    write_tar(tars[1], photos(15, SAMPLES))
    return [str(tar) for tar in tars]


@pytest.fixture(autouse=True)
def _alone(tracking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def photos(first: int, end: int) -> dict[str, bytes]:
    labels = blobs.CLASSES
    return {f"photo{n:04d}.jpg": blobs.picture(labels[n % 3], n) for n in range(first, end)}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def predict(shards: Any, model: str, output: Path | str, **options: Any) -> run.PredictReport:
    given = {"batch_size": BATCH, "part_samples": PART, "threads": 1} | options
    return run.predict(shards, model_uri=model, output=str(output), **given)


def rows(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(output.glob("*.parquet")) for row in read(path)]


def read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def content(output: Path) -> dict[str, bytes]:
    """What must not depend on who wrote it: all but the times."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and not path.name.startswith("rank-") and path.name != parts.SUMMARY
    }


def test_a_row_per_image_with_its_scores(shards: list[str], model: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    report = predict(shards, model, output)
    assert (report.samples, report.parts, report.done, report.finished) == (SAMPLES, 4, 4, True)
    assert (report.scored, report.bad_samples) == (SAMPLES, 0)
    found = rows(output)
    assert [row["index"] for row in found] == list(range(SAMPLES))
    assert [row["key"] for row in found] == [f"photo{n:04d}" for n in range(SAMPLES)]
    assert [row["shard"] for row in found] == ["a-000000.tar"] * 15 + ["a-000001.tar"] * 12
    assert [row["predicted"] for row in found] == [blobs.CLASSES[n % 3] for n in range(SAMPLES)]
    for row in found:
        assert row["error"] is None
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-6)
        assert row["probability"] == max(row["probabilities"])
    assert [pq.read_metadata(path).num_rows for path in sorted(output.glob("*.parquet"))] == [
        8, 8, 8, 3,
    ]  # fmt: skip
    about = json.loads(pq.read_schema(output / "part-000003.parquet").metadata[b"tarpon.predict"])
    assert about == json.loads((output / "plan.json").read_text())
    assert about["classes"] == blobs.CLASSES
    assert about["dataset_fingerprint"] == report.dataset_fingerprint
    assert about["model_digest"] == report.model_digest
    summary = json.loads((output / "summary.json").read_text())
    assert summary["predicted"] == dict.fromkeys(blobs.CLASSES, 9) == report.predicted
    assert summary["images_per_s"] > 0
    assert summary["wait_s"] >= 0


def test_a_part_is_rounded_up_to_whole_batches(
    shards: list[str], model: str, tmp_path: Path
) -> None:
    assert predict(shards, model, tmp_path / "out", batch_size=10, part_samples=11).parts == 2


def test_any_number_of_processes_leaves_the_same_files(
    shards: list[str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(shards, model, tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "3")  # as torchrun says it
    reports = []
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        reports.append(predict(shards, model, tmp_path / "three"))
    assert [report.finished for report in reports] == [False, False, True]
    assert [report.scored for report in reports] == [8, 8 + 3, 8]
    assert content(tmp_path / "three") == content(tmp_path / "one")
    summary = json.loads((tmp_path / "three" / "summary.json").read_text())
    assert (summary["processes"], summary["scored"]) == (3, SAMPLES)


@pytest.mark.parametrize("moment", ["before", "counted", "after"])
def test_stopped_between_any_two_files_it_goes_on(
    shards: list[str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    predict(shards, model, tmp_path / "whole")
    output, write = tmp_path / "out", parts.write

    def die(store: Store, plan: parts.Plan, part: int, found: parts.Rows) -> None:
        if part == 2:
            if moment == "after":
                write(store, plan, part, found)
            elif moment == "counted":
                store.write_bytes(".parts/part-000002.json", b"{}")
            raise KeyboardInterrupt
        write(store, plan, part, found)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write", die)
        with pytest.raises(KeyboardInterrupt):
            predict(shards, model, output)
    assert not (output / "summary.json").exists()
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert len(before) == 2 + (moment == "after")
    report = predict(shards, model, output)
    assert report.scored == SAMPLES - 8 * len(before)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert content(output) == content(tmp_path / "whole")


def test_a_second_time_does_nothing(shards: list[str], model: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = predict(shards, model, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    again = predict(shards, model, output)
    assert (again.scored, again.finished, again.predicted) == (0, True, first.predicted)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_bad_images_are_rows_that_say_why(
    model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    good = photos(0, 20)
    members = dict(good)
    members["photo0001.jpg"] = good["photo0001.jpg"][:200]
    for number in (8, 9, 10, 11):  # a whole batch
        members[f"photo{number:04d}.jpg"] = b"not an image"
    members["photo0019.txt"] = members.pop("photo0019.jpg")
    write_tar(tmp_path / "bad.tar", members)
    write_tar(tmp_path / "good.tar", good)
    report = predict(str(tmp_path / "bad.tar"), model, tmp_path / "out")
    assert (report.bad_samples, report.finished, sum(report.predicted.values())) == (6, True, 14)
    found = rows(tmp_path / "out")
    bad = [row for row in found if row["error"] is not None]
    assert [row["index"] for row in bad] == [1, 8, 9, 10, 11, 19]
    assert [row["key"] for row in bad] == [f"photo{row['index']:04d}" for row in bad]
    for row in bad:
        assert (row["predicted"], row["probability"], row["probabilities"]) == (None, None, None)
    assert [row["error"].split(",")[0] for row in bad] == [
        "JPEG of 200 bytes ends before its first scan; it is truncated",
        *["of no kind that is read"] * 4,
        f"no component {IMAGE_EXTENSIONS}",
    ]
    told = [line.partition("run.py")[2] for line in caplog.text.splitlines() if " get no " in line]
    assert [line.split()[1] for line in told] == ["1", "4", "1"]  # a line for each batch
    assert "photo0008 at byte" in told[1]
    predict(str(tmp_path / "good.tar"), model, tmp_path / "all")
    beside = {row["key"]: row for row in rows(tmp_path / "all")}
    for row in found:
        if row["error"] is None:
            assert row["probabilities"] == beside[row["key"]]["probabilities"]


def test_bad_images_give_the_same_files_whoever_writes_them(model: str, tmp_path: Path) -> None:
    members = photos(0, 20) | {"photo0003.jpg": b"", "photo0013.jpg": b"x"}
    for number in range(16, 20):  # the last part, and all of one process's share
        members[f"photo{number:04d}.jpg"] = b"broken"
    tar = tmp_path / "bad.tar"
    write_tar(tar, members)
    predict(str(tar), model, tmp_path / "one")
    for rank in range(3):
        report = predict(str(tar), model, tmp_path / "three", rank=rank, world_size=3)
    assert report.bad_samples == 6
    assert content(tmp_path / "three") == content(tmp_path / "one")


def test_nothing_but_bad_images(model: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "bad.tar", {f"p{n}.jpg": b"?" for n in range(6)})
    report = predict(str(tmp_path / "bad.tar"), model, tmp_path / "out")
    assert (report.bad_samples, report.predicted) == (6, dict.fromkeys(blobs.CLASSES, 0))
    assert all(row["error"] for row in rows(tmp_path / "out"))


def test_an_output_folder_is_one_job_s(shards: list[str], model: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict(shards, model, output)
    with pytest.raises(parts.OtherJobError, match=r"found .*samples=27.*expected.*samples=15"):
        predict(shards[0], model, output)
    other = colours.save(tmp_path / "other", seed=1)
    with pytest.raises(parts.OtherJobError, match=r"model_digest=.*; choose another output"):
        predict(shards, other, output)
    with pytest.raises(parts.OtherJobError, match=r"plan.json: found .* batch_size=4, .*=2; "):
        predict(shards, model, output, batch_size=2)


def test_what_it_refuses(
    shards: list[str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "empty.tar", {})
    with pytest.raises(EmptySplitError, match="no samples, expected some to score"):
        predict(str(tmp_path / "empty.tar"), model, tmp_path / "out")
    with pytest.raises(ValueError, match="rank=1, world_size=None, expected both or neither"):
        predict(shards, model, tmp_path / "out", rank=1)
    with pytest.raises(ValueError, match="expected 0 <= rank < world_size"):
        predict(shards, model, tmp_path / "out", rank=2, world_size=2)
    alien = colours.save(tmp_path / "alien", classes=None)
    with pytest.raises(logged_model.ModelMismatchError, match="logged by the train step"):
        predict(shards, alien, tmp_path / "out")
    words = ["--output", str(tmp_path / "out"), "--shards", *shards, "--model"]
    assert command.main([*words, "models:/nobody@champion"]) == 1
    assert "predict: models:/nobody@champion: cannot be loaded" in capsys.readouterr().err
    assert command.main([*words, model, "--device", "tpu"]) == 1
    assert "predict: --device='tpu': expected auto, cpu" in capsys.readouterr().err
    for wrong in ([], [*words, model, "--batch-size", "0"], [*words, model, "--rank", "0"]):
        with pytest.raises(SystemExit):
            command.main(wrong)


def test_a_model_is_waited_for_while_the_server_is_away(
    model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failures = logged_model._about, [requests.ConnectionError("no answer")] * 2

    def about(uri: str) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return real(uri)

    monkeypatch.setattr(logged_model, "_about", about)
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.001)
    assert logged_model.load(model).classes == blobs.CLASSES
    assert (failures, caplog.text.count("does not answer")) == ([], 1)
    failures.append(requests.ConnectionError("no answer"))
    with pytest.raises(mlflow_seam.TrackingError, match=r"no answer in 0 s .*; check MLFLOW_TRACK"):
        logged_model.load(model, patience_s=0)


def test_what_is_not_there_is_answered_with_what_is(tracking: str) -> None:
    with pytest.raises(
        mlflow_seam.TrackingError, match="no model is registered there: check MLFLOW_TRACK"
    ):
        logged_model.load("models:/photos@champion")
    client = mlflow_seam.connect()
    client.create_registered_model("photos")
    for _ in range(2):
        client.create_model_version("photos", "somewhere")
    client.set_registered_model_alias("photos", "champion", "2")
    for asked, instead in {
        "models:/photos@champoin": "of models:/photos there are @champion, /2, /1; ask for",
        "models:/photos/3": "of models:/photos there are @champion, /2, /1; ask for",
        "models:/photos@champion": "; check MLFLOW_TRACKING_URI, or train again",
        "models:/fotos@champion": "registered there: photos; expected models:/<name>@<alias>",
        "fotos": "registered there: photos; expected models:/<name>@<alias>",
    }.items():
        with pytest.raises(mlflow_seam.TrackingError, match=re.escape(instead)):
            logged_model.load(asked)


def test_broken_weights_are_no_scores(model: str) -> None:
    score = Scorer(logged_model.load(model), device="cpu")
    for weight in score.model.network.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteScoresError, match="its weights are broken"):
        score(np.zeros((1, colours.SIZE, colours.SIZE, 3), np.uint8))


def test_the_component_compiles_and_maps_its_parameters(
    shards: list[str], model: str, tmp_path: Path
) -> None:
    path = tmp_path / "predict.yaml"
    compiler.Compiler().compile(predict_component, str(path))
    assert "components.predict" in path.read_text()
    made = tmp_path / "made"
    given = {"model": model, "shards": shards[0], "output": str(tmp_path / "out")}
    message = {
        "inputs": {"parameterValues": given | {"batch_size": 4.0, "device": "cpu"}},
        "outputs": {
            "artifacts": {
                "predictions": {"artifacts": [{"name": "p", "uri": str(made / "predictions")}]}
            },
            "outputFile": str(made / "executor_output.json"),
        },
    }
    assert command.main(["--executor-input", json.dumps(message)]) == 0
    report = run.PredictReport.read(made / "predictions")
    assert (report.samples, report.finished) == (15, True)
    answer = json.loads((made / "executor_output.json").read_text())
    (artifact,) = answer["artifacts"]["predictions"]["artifacts"]
    assert artifact["metadata"]["output"] == str(tmp_path / "out")


@pytest.mark.slow
def test_a_model_by_any_of_its_names(copy_of_trained: Trained) -> None:
    client = mlflow_seam.connect()
    report = copy_of_trained.report
    client.create_registered_model("blobs")
    client.create_model_version("blobs", report.model_uri)
    client.set_registered_model_alias("blobs", "champion", "1")
    found = {}
    for asked in ("models:/blobs@champion", "models:/blobs/1", report.model_uri,
                  report.run_id, f"runs:/{report.run_id}/model"):  # fmt: skip
        found[asked] = logged_model.resolve(client, asked)
    assert {uri for uri, _, _ in found.values()} == {report.model_uri}
    assert found["models:/blobs@champion"][1:] == ("blobs", "1")
    assert found[report.run_id][1:] == ("", "")
    with pytest.raises(mlflow_seam.TrackingError, match=r"found the models \['model'\], expected"):
        logged_model.load(f"runs:/{report.run_id}/another")
    with pytest.raises(mlflow_seam.TrackingError, match="expected models:/<name>@<alias>"):
        logged_model.load("models:/blobs")
    assert logged_model.load(report.model_uri).classes == blobs.CLASSES


@pytest.mark.slow
def test_kill_9_and_once_more(
    shards: list[str], model: str, tmp_path: Path, empty_database: Path
) -> None:
    """The process really dies, in the middle of a write; the next one's files are the same."""
    program = (
        "import os, signal, sys\n"
        "from components.predict import __main__, parts\n"
        "table = parts.pq.write_table\n"
        "def write_table(data, file, **options):\n"
        "    table(data.slice(0, 3), file, **options)\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if 'photo0008' in str(data['key']) else 0\n"
        "    file.seek(0)\n"
        "    file.truncate()\n"
        "    table(data, file, **options)\n"
        "parts.pq.write_table = write_table\n"
        "sys.exit(__main__.main())\n"
    )
    output = tmp_path / "out"
    words = ["--model", model, "--shards", *shards, "--output", str(output), "--threads", "1"]
    words += ["--batch-size", str(BATCH), "--part-samples", str(PART)]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [path.name for path in output.glob("*.parquet")] == ["part-000000.parquet"]
    predict(shards, model, output)
    predict(shards, model, tmp_path / "whole")
    names = {name for name in content(output) if not name.endswith(".tmp")}
    assert {name: content(output)[name] for name in names} == content(tmp_path / "whole")


@pytest.mark.slow
def test_on_s3_as_in_a_folder(
    model: str, tmp_path: Path, s3_environment: S3Server, shards: list[str]
) -> None:
    bucket = s3_environment.bucket()
    store = Store(f"{bucket.url}/in")
    for path in shards:
        store.write_bytes(Path(path).name, Path(path).read_bytes())
    predict(shards, model, tmp_path / "here")
    there = f"{bucket.url}/out"
    report = predict(f"{bucket.url}/in/", model, there, rank=1, world_size=2)
    assert (report.finished, report.done) == (False, 2)
    assert predict(f"{bucket.url}/in/", model, there).finished
    remote, here = Store(there), content(tmp_path / "here")
    names = [name for name in remote.list() if "rank-" not in name and name != parts.SUMMARY]
    assert {name: remote.read_bytes(name) for name in names} == here
