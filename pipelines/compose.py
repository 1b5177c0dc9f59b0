"""From ``configs/`` and the overrides of a command line to one frozen ``Config``.

The one place that touches Hydra. It uses the compose API, not ``hydra.main``: no ``outputs/``
folder, no change of directory, no logging set up behind the caller's back.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from components.store import without_secrets
from pipelines.config import Config, ConfigError, key_types, register_schema
from pipelines.environment import ADDRESS_KEYS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
"""The tree of groups; it travels with the code, in a clone and in the image."""

_ADVICE = "`python -m pipelines --help` lists every key"


def load(overrides: Sequence[str] = ()) -> Config:
    """Compose, check and freeze the configuration.

    Raises:
        ConfigError: A key or group that does not exist (the nearest one is named), a value of
            the wrong type or out of range, or an override that cannot be parsed.
    """
    return freeze(compose_node(overrides))


def compose_node(overrides: Sequence[str] = ()) -> DictConfig:
    """The composed tree before its values are checked; for printing."""
    register_schema()
    overrides = [_quoted(override) for override in overrides]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            node = compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, overrides) from error
    for key in _unknown_keys(node):  # `+key=value` goes past Hydra's own check
        raise _no_such_key("command line", key)
    return node


def _quoted(override: str) -> str:
    """Take text as it was typed, and so any value that Hydra's grammar cannot read.

    ``~/my photos (2)`` and ``([^/]+)-\\d+`` would be errors, ``x\\(1`` another text.
    """
    key, equals, value = override.partition("=")
    if key_types().get(key.lstrip("+")) in (str, str | None):
        as_meant = value in ("", "null") or (len(value) > 1 and value[0] == value[-1] in "'\"")
        return override if as_meant else _as_text(key, value)
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except OverrideParseException:
        readable = False
    else:
        readable = not parsed.is_sweep_override()  # `a,b` would mean two runs
    if readable or not equals or not key:
        return override
    return _as_text(key, value)


def _as_text(key: str, value: str) -> str:
    """An override in quotes; there a backslash only means something before a quote."""
    escaped = re.sub(
        r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), value
    )
    return f"{key}='{escaped}'"


def freeze(node: DictConfig) -> Config:
    """Turn a composed tree into objects, which check their own values."""
    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise ConfigError(f"configuration: {_first_line(error)}; {_ADVICE}") from error
    assert isinstance(config, Config)
    return config


def printable(node: DictConfig) -> DictConfig:
    """A copy for a person to read: addresses without their users, passwords and queries."""
    shown = copy.deepcopy(node)
    for key in ADDRESS_KEYS:
        address = OmegaConf.select(shown, key)
        if isinstance(address, str):
            OmegaConf.update(shown, key, without_secrets(address))
    return shown


def _unknown_keys(node: DictConfig) -> list[str]:
    known = key_types()
    sections = {key.rpartition(".")[0] for key in known} | {""}
    sections |= {section.rpartition(".")[0] for section in sections}
    unknown: list[str] = []

    def walk(prefix: str, part: DictConfig) -> None:
        for name in part:
            key = f"{prefix}{name!s}"
            if key in known:
                continue
            value = part._get_node(name)
            if key in sections and isinstance(value, DictConfig):
                walk(f"{key}.", value)
            else:
                unknown.append(key)

    walk("", node)
    return unknown


def _explained(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Say in one line what Hydra says in four."""
    cause = error.__cause__ or error.__context__
    while isinstance(cause, HydraException):
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    where = _where(text)
    if isinstance(error, MissingConfigException):
        return _no_such_option(error)
    wrong_value = re.search(r"Error merging override (.+)", text)
    if isinstance(cause, ValidationError) and cause.full_key:
        given = wrong_value[1].partition("=") if wrong_value else (cause.full_key, "", "")
        return _wrong_type(where, str(cause.full_key), given[2].strip("'"), cause)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _no_such_key("command line", match[1])
    key = getattr(cause, "full_key", None) or ""
    if key and "not in" in str(cause):
        return _no_such_key(where, str(key))
    if match := re.search(r"In '[^']+': Validation error while composing config:\s*(.+)", text):
        return ConfigError(f"{where}: {match[1]}; {_ADVICE}")
    if isinstance(error, OverrideParseException):
        shown = " ".join(overrides)
        return ConfigError(f"command line: found {shown!r}, expected key=value pairs; {_ADVICE}")
    return ConfigError(f"{where}: {_first_line(cause or error)}; {_ADVICE}")


def _where(text: str) -> str:
    match = re.search(r"In '([^']+)'", text)
    return f"configs/{match[1].removesuffix('.yaml')}.yaml" if match else "command line"


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _no_such_key(where: str, key: str) -> ConfigError:
    near = nearest(key)
    hint = f", the nearest is {near!r}" if near else ""
    return ConfigError(f"{where}: there is no key {key!r}{hint}; {_ADVICE}")


def nearest(key: str) -> str | None:
    """The valid key or group closest to a misspelt one, or None when nothing is close."""
    known = [*key_types(), *groups(), *(f"pod@pod.{name}" for name in ("cpu", "train", "evaluate"))]
    sections = sorted({name.partition(".")[0] for name in known if "." in name})
    lower = key.lower()
    if found := difflib.get_close_matches(lower, known, n=1, cutoff=0.75):
        return found[0]
    by_last_part = {name.rpartition(".")[2]: name for name in reversed(known)}
    last = lower.rpartition(".")[2]
    if found := difflib.get_close_matches(last, list(by_last_part), n=1, cutoff=0.8):
        return by_last_part[found[0]]
    found = difflib.get_close_matches(lower, [*known, *sections], n=1, cutoff=0.5)
    return found[0] if found else None


def groups() -> dict[str, list[str]]:
    """Every config group and its options, as they lie in ``configs/``."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONFIGS.iterdir())
        if folder.is_dir()
    }


def _no_such_option(error: MissingConfigException) -> ConfigError:
    group, _, option = (error.missing_cfg_file or "").removesuffix(".yaml").rpartition("/")
    options = list(error.options or [])
    found = difflib.get_close_matches(option, options, n=1, cutoff=0.4)
    hint = f", the nearest is {found[0]!r}" if found else ""
    return ConfigError(
        f"command line: {group}={option!r}: there is no configs/{group}/{option}.yaml{hint}; "
        f"choose one of {', '.join(options) or '(none)'}"
    )


def _wrong_type(where: str, key: str, given: str, cause: ValidationError) -> ConfigError:
    kind = key_types().get(key)
    expected = _readable(kind) if kind else "another type"
    match = re.search(r"Value '(.*)' of type", str(cause))
    value = given or (match[1] if match else "")
    shown = f"={value!r}" if value else ""
    return ConfigError(f"{where}: {key}{shown}: expected {expected}; {_ADVICE}")


def _readable(kind: object) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        list[float]: "a list of numbers such as [.8,.1,.1]",
    }
    if kind in names:
        return names[kind]
    parts = getattr(kind, "__args__", ())
    if type(None) in parts:
        rest = [_readable(part) for part in parts if part is not type(None)]
        return " or ".join([*rest, "null"])
    return str(kind)
