"""The step that finds a published version."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from components import manifest
from components.manifest import SplitInfo
from pipelines.published import published


def test_a_version_that_evaluate_would_refuse_is_refused_before_training(tmp_path: Path) -> None:
    sides = {"train": SplitInfo(samples=9, bytes=9, shards=1, classes={"cat": 5, "dog": 4})}
    manifest.write(
        manifest.Manifest(
            url=str(tmp_path / "photos" / "v1"),
            name="photos",
            version="v1",
            parent=None,
            classes=["cat", "dog"],
            splits=sides,
            catalog={"id": "c", "url": "c"},
            config={},
            code="x",
            digest="d" * 64,
        )
    )
    config = {
        "data": {"name": "photos", "version": "v1"},
        "store": {"root": str(tmp_path)},
        "until": "train",
    }
    found = SimpleNamespace(path=str(tmp_path / "dataset"), metadata={})
    published.python_func(config=json.dumps(config), dataset=found)
    assert found.metadata["samples.train"] == 9
    config["until"] = "evaluate"
    with pytest.raises(ValueError, match="photos/v1: no test sample among 9"):
        published.python_func(config=json.dumps(config), dataset=found)
