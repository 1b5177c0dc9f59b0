"""What a compiled pipeline is made of: steps, pods, environment; and that KFP can read it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines import environment, image_training
from pipelines.compose import load
from pipelines.config import ConfigError

pytestmark = pytest.mark.slow  # a few seconds each, and many

DATA = {"ingest", "split", "profile", "plan", "pack", "seal"}
MODEL = {"train", "evaluate", "register"}


class Compiled:
    """One compiled pipeline: the spec, and the Kubernetes part per executor."""

    def __init__(self, path: Path, overrides: list[str]) -> None:
        config = load([f"output={path}", "action=compile", *overrides])
        pods = environment.for_pods(config)
        graph = image_training.build(config, image_training.for_pods(pods.variables))
        compiler.Compiler().compile(graph, str(path))
        self.text = path.read_text(encoding="utf-8")
        self.spec, self.platform = yaml.load_all(self.text, yaml.CSafeLoader)
        self.executors: dict[str, Any] = self.spec["deploymentSpec"]["executors"]
        self.kubernetes = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    @property
    def steps(self) -> set[str]:
        return {name.removeprefix("exec-") for name in self.executors}

    def container(self, step: str) -> dict[str, Any]:
        found: dict[str, Any] = self.executors[f"exec-{step}"]["container"]
        return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Compiled]:
    """Compiles overrides, each combination once."""
    folder = tmp_path_factory.mktemp("compiled")

    @functools.cache
    def compile_once(*overrides: str) -> Compiled:
        return Compiled(folder / f"{len(list(folder.iterdir()))}.yaml", list(overrides))

    return compile_once


@pytest.fixture(scope="module")
def whole(compiled: Callable[..., Compiled]) -> Compiled:
    return compiled()


def test_it_is_a_pipeline_spec(whole: Compiled) -> None:
    spec = json_format.ParseDict(whole.spec, pipeline_spec_pb2.PipelineSpec())
    assert spec.pipeline_info.name == "image-training"
    assert set(spec.root.input_definitions.parameters) == {"config"}
    platform = json_format.ParseDict(whole.platform, pipeline_spec_pb2.PlatformSpec())
    executors = platform.platforms["kubernetes"].deployment_spec.executors
    for name in whole.executors:
        wanted = json_format.MessageToDict(executors[name])
        json_format.ParseDict(wanted, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_every_step_is_there(whole: Compiled) -> None:
    assert whole.steps == DATA | MODEL


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["until=ingest"], {"ingest"}),
        (["until=profile"], {"ingest", "profile"}),
        (["until=split"], {"ingest", "profile", "split"}),
        (["until=shard"], DATA),
        (["until=train"], DATA | {"train"}),
        (["until=evaluate"], DATA | {"train", "evaluate"}),
        (["until=register"], DATA | MODEL),
        (["data.version=v1"], {"published"} | MODEL),
        (["data.version=v1", "until=train"], {"published", "train"}),
    ],
)
def test_until_and_version_decide_the_steps(
    compiled: Callable[..., Compiled], overrides: list[str], steps: set[str]
) -> None:
    assert compiled(*overrides).steps == steps


def test_profile_reads_the_split_where_there_is_one(compiled: Callable[..., Compiled]) -> None:
    def producer(found: Compiled) -> str:
        task = found.spec["root"]["dag"]["tasks"]["profile"]
        source: str = task["inputs"]["artifacts"]["catalog"]["taskOutputArtifact"]["producerTask"]
        return source

    assert producer(compiled()) == "split"
    assert producer(compiled("until=profile")) == "ingest"


def test_no_pod_runs_pip(whole: Compiled) -> None:
    for name, executor in whole.executors.items():
        container = executor["container"]
        words = " ".join([*container["command"], *container.get("args", [])])
        assert "pip" not in words.replace("pipeline", "").split(), name
        assert "pip install" not in words, name
        assert "ensurepip" not in words, name


def test_train_and_evaluate_are_in_exec_form(whole: Compiled) -> None:
    for step in ("train", "evaluate"):
        assert whole.container(step)["command"] == ["python3", "-m", f"components.{step}"]
        assert whole.container(step)["args"][0] == "--executor-input"


def test_model_steps_ask_for_a_gpu_and_the_others_do_not(whole: Compiled) -> None:
    for step in whole.steps:
        wanted = whole.container(step)["resources"].get("accelerator")
        if step in ("train", "evaluate"):
            assert wanted is not None
            assert (wanted["resourceType"], wanted["resourceCount"]) == ("nvidia.com/gpu", "1")
        else:
            assert wanted is None


def test_every_pod_has_requests_limits_and_optional_secrets(whole: Compiled) -> None:
    for step in whole.steps:
        resources = whole.container(step)["resources"]
        names = ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit")
        assert all(resources[f"resource{name}"] for name in names), step
        (secret,) = whole.kubernetes[f"exec-{step}"]["secretAsEnv"]
        assert (secret["secretName"], secret["optional"]) == ("tarpon-s3", True)


def test_train_has_shared_memory_and_tolerates_gpu_nodes(whole: Compiled) -> None:
    train = whole.kubernetes["exec-train"]
    (mount,) = train["emptyDirMounts"]
    assert (mount["mountPath"], mount["medium"], mount["sizeLimit"]) == (
        "/dev/shm",
        "Memory",
        "8Gi",
    )
    assert [taint["key"] for taint in train["tolerations"]] == ["nvidia.com/gpu"]
    assert "emptyDirMounts" not in whole.kubernetes["exec-pack"]


def test_profiles_can_be_swapped_and_changed(tmp_path: Path) -> None:
    found = Compiled(
        tmp_path / "p.yaml",
        ["pod@pod.train=gpu_spot", "pod.train.gpus=4", "pod.cpu.volumes={tarpon-data: /data}"],
    )
    assert found.container("train")["resources"]["accelerator"]["resourceCount"] == "4"
    train = found.kubernetes["exec-train"]
    assert train["nodeSelector"]["labels"] == {"karpenter.sh/capacity-type": "spot"}
    assert len(train["tolerations"]) == 3
    (mount,) = found.kubernetes["exec-ingest"]["pvcMount"]
    assert (mount["constant"], mount["mountPath"]) == ("tarpon-data", "/data")


def test_tasks_retry_have_names_and_no_cache(whole: Compiled) -> None:
    def tasks(dag: dict[str, Any]) -> list[dict[str, Any]]:
        return [t for t in dag["tasks"].values() if "iterator" not in str(t.keys()).lower()]

    loop = whole.spec["components"]["comp-for-loop-1"]["dag"]
    found = tasks(whole.spec["root"]["dag"]) + tasks(loop)
    assert len(found) == len(whole.steps)
    for task in found:
        assert task["retryPolicy"]["maxRetryCount"] == 2
        assert task["cachingOptions"].get("enableCache", False) is False
        assert task["taskInfo"]["name"][0].isupper()


def test_config_is_one_string_without_addresses(tmp_path: Path) -> None:
    addresses = ["mlflow.uri=http://mlflow.example:5000", "store.endpoint=http://s3.example:9000"]
    found = Compiled(tmp_path / "p.yaml", ["train.epochs=3", *addresses])
    parameter = found.spec["root"]["inputDefinitions"]["parameters"]["config"]
    assert parameter["parameterType"] == "STRING"
    assert json.loads(parameter["defaultValue"])["train"]["epochs"] == 3
    assert "example" not in parameter["defaultValue"]
    for step in found.steps:
        env = {item["name"]: item["value"] for item in found.container(step)["env"]}
        assert env == {
            "MLFLOW_TRACKING_URI": "http://mlflow.example:5000",
            "AWS_ENDPOINT_URL_S3": "http://s3.example:9000",
        }


def test_defaults_of_this_machine_do_not_reach_the_pods(whole: Compiled) -> None:
    assert "sqlite" not in whole.text
    assert str(Path.cwd()) not in whole.text
    assert all("env" not in whole.container(step) for step in whole.steps)
    notes = "\n".join(environment.for_pods(load([])).notes)
    for key in ("mlflow.uri='sqlite:///mlflow.db'", "store.root='tarpon-data'", "data.source"):
        assert key in notes


@pytest.mark.parametrize("address", ["http://me:hunter2@host", "http://host/?token=hunter2"])
@pytest.mark.parametrize("key", ["mlflow.uri", "store.endpoint"])
def test_credentials_in_an_address_are_refused_and_not_shown(key: str, address: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: it carries credentials") as caught:
        environment.for_pods(load([f"{key}={address}"]))
    assert "hunter2" not in str(caught.value)
