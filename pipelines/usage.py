"""The text of ``python -m pipelines --help``, made from the schema so that it cannot go stale."""

from __future__ import annotations

import shlex
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from pipelines.compose import groups
from pipelines.config import Config, PodProfile

USAGE = r"""
usage: python -m pipelines [--cfg job] [action=run|compile] [key=value ...] [group=option ...]

Turns a folder of images into a registered model: ingest, profile, split, shard, train, evaluate,
register. A local run goes through the same graph as the cluster.

  python -m pipelines data.source=photos                     everything, on this machine
  python -m pipelines data.source=photos until=shard         up to a published, checked dataset
  python -m pipelines data.version=v0a1b2c3d4e5f train.lr=1e-3   train on a published version
  python -m pipelines data.source=photos split=group 'ingest.group=([^/]+)-\d+\.jpg$'
  python -m pipelines action=compile output=pipeline.yaml mlflow=cluster
  python -m pipelines --cfg job data.source=photos           print the settings, run nothing

TARPON_IMAGE=registry/tarpon@sha256:... in the environment names the image of compiled steps.
""".lstrip()

_KEY_WIDTH = 30


def text(defaults: DictConfig) -> str:
    """The whole help page; ``defaults`` is the composed tree whose values are shown."""
    parts = [USAGE, "keys (default): meaning", *_section(Config, "", defaults)]
    parts += ["", "pod.<cpu|train|evaluate>.<key>: the pods of compiled steps"]
    parts += [_line(item.name, None, item.metadata) for item in fields(PodProfile)]
    parts += ["", "groups: a file of configs/ to start from"]
    for name, options in groups().items():
        if name != "local":
            shown = "pod@pod.<cpu|train|evaluate>" if name == "pod" else name
            parts.append(f"  {shown}={'|'.join(options)}")
    parts += ["", "configs/local/default.yaml, when there is one, is read last and not committed."]
    return "\n".join(parts)


def _section(cls: Any, prefix: str, defaults: DictConfig) -> list[str]:
    lines: list[str] = []
    hints = get_type_hints(cls)
    for item in fields(cls):
        kind = hints[item.name]
        key = f"{prefix}{item.name}"
        if key == "pod":
            continue
        if is_dataclass(kind):
            lines += ["", *_section(kind, f"{key}.", defaults)]
        else:
            lines.append(_line(key, OmegaConf.select(defaults, key), item.metadata, known=True))
    return lines


def _line(key: str, value: Any, metadata: Any, *, known: bool = False) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    default = ""
    if known:
        default = "(null) " if value is None else f"({value}) "
    example = metadata.get("example")
    example = shlex.quote(f"{key}={example}") if example and value is None else ""
    suffix = f"; for example {example}" if example else ""
    return f"  {key:<{_KEY_WIDTH}} {default}{metadata['meaning']}{suffix}"
