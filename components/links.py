"""How a Kubeflow run and an MLflow run point at each other.

Addresses for browsers come from the environment, since they are not those that pods use:
KFP_UI_URL (https://kubeflow.example/pipeline) and MLFLOW_UI_URL; without the latter the tracking
URI is taken, where it is http(s). It knows no kfp and talks to nobody.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from components.store import without_secrets

KFP_UI, MLFLOW_UI = "KFP_UI_URL", "MLFLOW_UI_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class KfpRun:
    """The pipeline run that a step belongs to; both empty outside of one.

    Args:
        run_id: KFP's id of the run; the local runner gives one too.
        task: The task's name in the graph.
    """

    run_id: str = ""
    task: str = ""

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> KfpRun:
        """What `add_arguments` let the launcher say; a placeholder nobody filled in is nothing."""
        known = {
            "run_id": getattr(options, "kfp_run", None),
            "task": getattr(options, "kfp_task", None),
        }
        return cls(**{k: v for k, v in known.items() if v and not v.startswith("{{")})

    @property
    def url(self) -> str:
        """Its page, or an empty string where KFP_UI_URL does not say where KFP's pages are."""
        base = _page(os.environ.get(KFP_UI))
        return f"{base}/#/runs/details/{quote(self.run_id)}" if base and self.run_id else ""

    def tags(self) -> dict[str, str]:
        """For the MLflow run."""
        known = {"kfp.run_id": self.run_id, "kfp.task": self.task, "kfp.url": self.url}
        return {key: value for key, value in known.items() if value}


NO_RUN = KfpRun()
"""A step that was started by hand."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which a container component hands KFP's placeholders to a step."""
    parser.add_argument("--kfp-run", metavar="ID", help="id of the KFP run, set by the pipeline")
    parser.add_argument("--kfp-task", metavar="NAME", help="name of the KFP task")


def mlflow_run_url(experiment_id: str, run_id: str) -> str:
    """A run's page; empty where the tracking store has none, such as a local database."""
    base = _mlflow_pages()
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}" if base else ""


def mlflow_model_url(experiment_id: str, model_id: str) -> str:
    """A logged model's page, or an empty string."""
    base = _mlflow_pages()
    return f"{base}/#/experiments/{experiment_id}/models/{model_id}" if base else ""


def mlflow_version_url(name: str, version: str) -> str:
    """A registered version's page, or an empty string."""
    base = _mlflow_pages()
    return f"{base}/#/models/{quote(name, safe='')}/versions/{version}" if base else ""


def mlflow_metadata(experiment_id: str, run_id: str, model_uri: str = "") -> dict[str, str]:
    """What a KFP artifact says of its MLflow run: the id always, the pages where there are any.

    `mlflow_links` is Markdown. A local database has no pages, and gives no dead links.
    """
    model_id = model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else ""
    pages = {
        "mlflow_run_url": mlflow_run_url(experiment_id, run_id),
        "mlflow_model_url": mlflow_model_url(experiment_id, model_id) if model_id else "",
    }
    links = markdown({"run": pages["mlflow_run_url"], "model": pages["mlflow_model_url"]})
    found = {"mlflow_run_id": run_id, **pages, "mlflow_links": links}
    return {key: value for key, value in found.items() if value}


def mlflow_version_metadata(name: str, version: str) -> dict[str, str]:
    """What a KFP artifact says of a registered version's page; nothing where there is none."""
    page = mlflow_version_url(name, version)
    links = markdown({"registered version": page})
    return {"mlflow_version_url": page, "mlflow_links": links} if page else {}


def description(facts: Mapping[str, str], pages: Mapping[str, str]) -> str:
    """A run's description in Markdown: a line of facts, then links; what is empty is left out."""
    lines = [f"- {name}: `{value}`" for name, value in facts.items() if value]
    lines += [f"- [{name}]({url})" for name, url in pages.items() if url]
    return "\n".join(lines)


def markdown(pages: Mapping[str, str]) -> str:
    """`[run](http://...), [model](http://...)`; what is empty is left out."""
    return ", ".join(f"[{name}]({url})" for name, url in pages.items() if url)


def _mlflow_pages() -> str:
    return _page(os.environ.get(MLFLOW_UI)) or _page(os.environ.get("MLFLOW_TRACKING_URI"))


def _page(address: str | None) -> str:
    """An address that a browser can open, without credentials; else an empty string."""
    if not address or not address.startswith(("http://", "https://")):
        return ""
    return without_secrets(address).rstrip("/")
