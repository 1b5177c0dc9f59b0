"""The rules of settings: one answer for steps and config, and cheap to ask."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components import rules

GOOD: list[tuple[Callable[..., None], Any]] = [
    (rules.check_name, "Flowers-2.x_1"),
    (rules.check_version, "v0a1b2c3"),
    (rules.check_strategy, "group"),
    (rules.check_fractions, [0.8, 0.2, 0]),
    (rules.check_bits, None),
    (rules.check_bits, 12),
    (rules.check_max_bytes, 10_240),
    (rules.check_max_pixels, 178_956_970),
    (rules.check_group, None),
    (rules.check_group, r"(\d+)\.jpg$"),
    (rules.check_device, "cuda:12"),
    (rules.check_tracking_uri, "mlruns"),
    (rules.check_tracking_uri, "mysql+pymysql://host/db"),
]
BAD: list[tuple[Callable[..., None], Any, str]] = [
    (rules.check_name, "bl\u00fcten", "expected ASCII letters"),
    (rules.check_name, "-x", "the first a letter or digit"),
    (rules.check_name, "x\n", "expected ASCII letters"),
    (rules.check_version, "catalog", "beside the versions"),
    (rules.check_version, "checkpoints", "beside the versions"),
    (rules.check_strategy, "grup", "the nearest is 'group'"),
    (rules.check_fractions, [0.5, 0.5], "expected three shares"),
    (rules.check_bits, 13, "expected 0 to 12"),
    (rules.check_bits, -1, "expected 0 to 12"),
    (rules.check_max_bytes, 10_239, "expected at least 10240"),
    (rules.check_max_pixels, 178_956_971, "expected 1 to 178956970"),
    (rules.check_group, "(", "not a regular expression"),
    (rules.check_device, "cuda:", "expected auto, cpu, cuda or cuda:<n>"),
    (rules.check_tracking_uri, "htp://bob:pw@host", r"htp:..: expected .*the nearest is 'http'"),
]


@pytest.mark.parametrize(("check", "value"), GOOD)
def test_what_is_allowed(check: Callable[..., None], value: Any) -> None:
    check(value)


@pytest.mark.parametrize(("check", "value", "message"), BAD)
def test_what_is_refused_says_where(check: Callable[..., None], value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check(value, where="some.key")
    assert str(error.value).startswith("some.key=")


@pytest.mark.parametrize(
    ("test", "classes", "until", "message"),
    [
        (0, "ab", None, "photos/v1: no test sample among 9, expected at least one"),
        (0, "ab", "evaluate", "set until=train"),
        (0, "ab", "train", None),
        (1, "ab", None, None),
        (1, "a", "train", r"photos/v1: found the classes \['a'\], expected at least two"),
        (0, "a", "shard", None),
    ],
)
def test_what_is_too_little_to_train_or_judge_is_refused_before(
    test: int, classes: str, until: str | None, message: str | None
) -> None:
    refused = pytest.raises(ValueError, match=message) if message else contextlib.nullcontext()
    with refused:
        rules.check_enough({"train": 9, "test": test}, classes, until=until, where="photos/v1")


def test_asking_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'mlflow', 'numpy', 'pyarrow', 'PIL', 'tarpon'}"
    code = f"import sys, components.rules; sys.exit(bool({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
    )
