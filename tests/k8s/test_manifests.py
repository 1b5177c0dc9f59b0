"""The overlays build offline with whatever kubectl there is, and are what Kubernetes accepts."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.predict import server

K8S = Path(__file__).resolve().parents[2] / "k8s"
OVERLAYS = ["local", "cluster"]
SERVING = [f"{overlay}/serving" for overlay in OVERLAYS]


@pytest.fixture(scope="module", params=OVERLAYS)
def built(request: pytest.FixtureRequest) -> str:
    return build(request.param)


@pytest.fixture(scope="module", params=SERVING)
def serving(request: pytest.FixtureRequest) -> str:
    return build(request.param)


@pytest.fixture(params=OVERLAYS + SERVING)
def each(request: pytest.FixtureRequest) -> str:
    return build(request.param)


@functools.cache
def build(overlay: str) -> str:
    kubectl = shutil.which("kubectl")
    assert kubectl, "kubectl is missing: `make setup` installs kubernetes-client"
    folder = K8S / "overlays" / overlay
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(text: str) -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


def test_kubernetes_accepts_it(each: str, tmp_path: Path) -> None:
    file = tmp_path / "built.yaml"
    file.write_text(each)
    tool = Path(sys.executable).parent / "kubernetes-validate"
    command = [tool, "--kubernetes-version", "1.34", "--strict", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_overlays_give_namespace_tag_and_size(built: str) -> None:
    found = documents(built)
    assert set(found) == {"Deployment", "Service", "PersistentVolumeClaim"}
    assert {item["metadata"]["namespace"] for item in found.values()} == {"kubeflow"}
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith("tarpon:0.1.0")
    size = found["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]
    assert size in ("5Gi", "200Gi")


def test_base_names_no_namespace_no_tag() -> None:
    for file in K8S.glob("base/**/*.yaml"):
        for item in yaml.safe_load_all(file.read_text()):
            assert "namespace" not in item.get("metadata", {})
            assert "namespace" not in item
            for container in _containers(item):
                assert ":" not in container["image"]


def test_every_container_is_bounded_probed_and_unprivileged(each: str) -> None:
    containers = [c for item in documents(each).values() for c in _containers(item)]
    assert containers
    for container in containers:
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert "readinessProbe" in container
        assert "livenessProbe" in container
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
    pod = documents(each)["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_server_answers_to_its_service_s_name(built: str) -> None:
    found = documents(built)
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    (allowed,) = [a for a in container["args"] if a.startswith("--allowed-hosts=")]
    name = found["Service"]["metadata"]["name"]
    assert f"{name}:*" in allowed
    probe = container["readinessProbe"]["httpGet"]
    assert probe["httpHeaders"] == [{"name": "Host", "value": f"{name}:5000"}]
    assert found["Deployment"]["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_selectors_match(each: str) -> None:
    found = documents(each)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    (port,) = found["Service"]["spec"]["ports"]
    assert port["targetPort"] in [named["name"] for named in container["ports"]]


def test_the_volume_is_the_claim(built: str) -> None:
    found = documents(built)
    claim = found["Deployment"]["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]
    assert claim["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]


def test_serving_runs_the_handler_with_options_it_has(serving: str) -> None:
    found = documents(serving)
    assert set(found) == {"Deployment", "Service"}
    assert {item["metadata"]["namespace"] for item in found.values()} == {"kubeflow"}
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python3", "-m", "components.predict.handler"]
    env = {item["name"]: item["value"] for item in container["env"]}
    args = [arg.replace("$(TARPON_MODEL)", env["TARPON_MODEL"]) for arg in container["args"]]
    options = server._parser().parse_args(args)
    assert options.model.startswith("models:/")
    assert options.model.endswith("@champion")
    assert (options.host, options.port) == ("0.0.0.0", container["ports"][0]["containerPort"])
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + server.DRAIN_S
    assert env["MLFLOW_TRACKING_URI"] == mlflow_address()


def test_the_pods_of_compiled_steps_find_this_server() -> None:
    config = yaml.safe_load((K8S.parent / "configs/mlflow/cluster.yaml").read_text())
    assert config["uri"] == mlflow_address()


def mlflow_address() -> str:
    service = yaml.safe_load((K8S / "base/mlflow/service.yaml").read_text())
    return f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def _containers(item: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        item.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    )
    return found
