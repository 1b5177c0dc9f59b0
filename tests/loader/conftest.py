"""Shards that every test of the loader may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loader.tars import samples, write_tar


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """103 samples in three shards; sample i has the key f'{i:05d}' and the label i % 10."""
    folder = tmp_path_factory.mktemp("shards")
    for number, (first, last) in enumerate([(0, 40), (40, 41), (41, 103)]):
        write_tar(folder / f"train-{number:06d}.tar", samples(range(first, last)))
    return folder
