"""What travels as environment instead of config: the addresses of MLflow and of the S3 endpoint.

An address says where a run happens, not what it computes, and may carry a credential; so it is
neither in the JSON that the steps get nor in the manifest of a dataset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from components.links import KFP_UI, MLFLOW_UI
from components.store import without_secrets
from pipelines.config import Config, ConfigError

MLFLOW = "MLFLOW_TRACKING_URI"
S3_ENDPOINT = "AWS_ENDPOINT_URL_S3"
PAGES = (KFP_UI, MLFLOW_UI)
"""Where a browser finds the two UIs; pods get them as they are set where the pipeline is compiled,
and runs link to each other by them (components.links)."""
ADDRESS_KEYS = ("mlflow.uri", "store.endpoint")
"""The keys that are kept out of everything a run saves."""


def storable(overrides: Iterable[str]) -> list[str]:
    """The overrides of a command as a run may save them: no addresses, and no secrets in others.

    Every way to set an address goes: ``+mlflow.uri=..``, and ``mlflow={uri: ..}`` too.
    """
    sections = {key.partition(".")[0] for key in ADDRESS_KEYS}
    kept: list[str] = []
    for override in overrides:
        name, _, value = override.strip().lstrip("+~").partition("=")
        key = name.partition("@")[0].strip()
        if key not in ADDRESS_KEYS and (key not in sections or value.strip().isidentifier()):
            kept.append(without_secrets(override))
    return kept


def localise(config: Config, folder: Path) -> Config:
    """The same settings with every relative path made absolute, as seen from ``folder``.

    Steps run in processes of their own and a saved configuration is read later: neither should
    depend on where somebody stood.
    """
    source = config.data.source
    return replace(
        config,
        data=replace(config.data, source=source and _absolute(source, folder)),
        store=replace(config.store, root=_absolute(config.store.root, folder)),
        mlflow=replace(config.mlflow, uri=_absolute_database(config.mlflow.uri, folder)),
    )


def for_run(config: Config) -> dict[str, str]:
    """The variables for steps on this machine; takes a config that ``localise`` went through."""
    return _present(config.mlflow.uri, config.store.endpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodEnvironment:
    """The variables for compiled tasks, and what a person should know about them."""

    variables: dict[str, str]
    notes: list[str]


def for_pods(config: Config) -> PodEnvironment:
    """The variables for compiled tasks: none that only mean something on this machine.

    Raises:
        ConfigError: An address carries a user, a password or a query, which would be in the YAML.
    """
    notes: list[str] = []
    uri = config.mlflow.uri
    for key, address in zip(ADDRESS_KEYS, (uri, config.store.endpoint), strict=True):
        if address and without_secrets(address) != address:
            raise ConfigError(
                f"{key}: it carries credentials (a user, a password or a query), expected a plain "
                "address, since compiled pipelines are readable by everybody; put them in a "
                "secret and name it in pod.<profile>.secrets"
            )
    if uri and not uri.startswith(("http://", "https://", "databricks")):
        notes.append(
            f"mlflow.uri={uri!r} is a file of this machine, so the pods are not given it; set "
            "mlflow=cluster or mlflow.uri=http://..., unless KFP's MLflow plugin provides one"
        )
        uri = None
    root = config.store.root
    if "://" not in root and not root.startswith("/"):
        notes.append(
            f"store.root={root!r} is a relative folder, and pods share no working directory; set "
            "it to a path below pod.<profile>.volumes, for example store.root=/data with "
            "'pod.cpu.volumes={tarpon-data:/data}' and the same for pod.train and pod.evaluate"
        )
    if not config.data.source and not config.data.version:
        notes.append(
            "data.source is not set: give it in the `config` parameter when a run is started"
        )
    variables = _present(uri, config.store.endpoint)
    for name in PAGES:
        if page := os.environ.get(name):
            variables[name] = without_secrets(page)
    return PodEnvironment(variables=variables, notes=notes)


def _present(uri: str | None, endpoint: str | None) -> dict[str, str]:
    pairs = {MLFLOW: uri, S3_ENDPOINT: endpoint}
    return {name: value for name, value in pairs.items() if value}


def _absolute(path: str, folder: Path) -> str:
    """Leave URLs alone; ``~`` is the home folder. Links are kept: their names are the user's."""
    if "://" in path:
        return path
    return os.path.abspath(folder / Path(path).expanduser())


def _absolute_database(uri: str | None, folder: Path) -> str | None:
    """``sqlite:///mlflow.db`` is relative to the working directory; four slashes are not."""
    prefix = "sqlite:///"
    if uri is None or not uri.startswith(prefix) or uri.startswith(prefix + "/"):
        return uri
    name = uri.removeprefix(prefix)
    return uri if name.startswith(":memory:") else f"{prefix}{os.path.abspath(folder / name)}"
