"""The schema of the configuration: every key there is, its type, its meaning and its limits.

Default values are not here: they stand in ``configs/``, each with its unit or reason. Below
``pipelines.compose`` nobody sees an OmegaConf node, only these frozen objects.
"""

# ruff: noqa: RUF009 - `_key` is `dataclasses.field` with a meaning
from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from components import rules
from components.store import without_secrets
from components.train.settings import Settings

STEPS = ("ingest", "profile", "split", "shard", "train", "evaluate", "register")
"""The steps of the pipeline, in the order in which ``until`` counts them."""

ACTIONS = ("run", "compile")
PLANNED_ACTIONS = ("submit", "schedule", "sweep")


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of its range; the text says which and why.

    The text never holds a secret: passwords and queries are cut from every address in it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


def _key(meaning: str, *, example: str | None = None) -> Any:
    """A required field that carries its own line of ``--help``."""
    return field(metadata={"meaning": meaning, "example": example})


def _check(holds: bool, where: str, value: object, expected: str, advice: str) -> None:
    if not holds:
        raise ConfigError(f"{where}={value!r}: expected {expected}; {advice}")


def _obey(rule: Callable[..., None], value: object, where: str | None = None) -> None:
    """Apply the rule that the step itself applies; ``where`` defaults to the rule's own key."""
    try:
        rule(value) if where is None else rule(value, where=where)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_no_secrets(where: str, address: str | None) -> None:
    if address and "://" in address and without_secrets(address) != address:
        raise ConfigError(
            f"{where}: it carries credentials (a user, a password or a query), expected a plain "
            "address, since every run saves it; give credentials as environment"
        )


def _check_at_least(where: str, value: float | None, least: float) -> None:
    good = value is None or (math.isfinite(value) and value >= least)
    _check(good, where, value, f"at least {least}", "raise it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is read, and what it is called once it is ours."""

    source: str | None = _key(
        "where the images are: a folder or s3://bucket/prefix whose sub-folders are the classes, "
        "or a manifest (.csv, .jsonl, .parquet) with the columns uri and label",
        example="photos",
    )
    name: str = _key("name of the dataset; a folder under store.root", example="flowers")
    version: str | None = _key(
        "use this published version and skip ingest, profile, split and shard",
        example="v0a1b2c3d4e5f",
    )

    def __post_init__(self) -> None:
        _obey(rules.check_name, self.name)
        if self.version is not None:
            _obey(rules.check_version, self.version)
        _check_no_secrets("data.source", self.source)
        _check(self.source != "", "data.source", self.source, "a folder", "name one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where catalogs and shards are kept."""

    root: str = _key(
        "folder or s3://bucket/prefix that holds catalogs and shards", example="tarpon-data"
    )
    endpoint: str | None = _key(
        "S3 endpoint; travels as AWS_ENDPOINT_URL_S3, never in the config of a run",
        example="http://minio:9000",
    )

    def __post_init__(self) -> None:
        _check_no_secrets("store.root", self.root)
        _check(self.root != "", "store.root", self.root, "a folder", "name one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """How images are read and judged."""

    workers: int | None = _key(
        "threads that read and decode; null: one per core, at least 16 for files on the network"
    )
    max_pixels: int = _key("larger images are quarantined as decompression bombs")
    group: str | None = _key(
        "regular expression searched in each file's path below data.source, whose first (..) is "
        "the group that split=group keeps on one side; null: no groups",
        example=r"([^/]+)-\d+\.jpg$",
    )

    def __post_init__(self) -> None:
        _check_at_least("ingest.workers", self.workers, 1)
        _obey(rules.check_max_pixels, self.max_pixels)
        _obey(rules.check_group, self.group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How samples are divided into train, val and test."""

    strategy: str = _key("random, stratified (class shares kept) or group (no group on two sides)")
    by: str | None = _key("column whose values stay on one side under strategy group; null: group")
    fractions: list[float] = _key("shares of train, val and test", example="[.8,.1,.1]")
    seed: int = _key("fixes the split")
    near_duplicate_bits: int | None = _key(
        "images whose 64-bit hashes differ in at most this many bits stay together; null: none"
    )

    def __post_init__(self) -> None:
        _obey(rules.check_strategy, self.strategy)
        _obey(rules.check_fractions, self.fractions)
        _obey(rules.check_bits, self.near_duplicate_bits)
        _check(
            self.by is None or self.strategy == "group",
            "split.by",
            self.by,
            f"null under split.strategy={self.strategy}",
            "set split.strategy=group to keep its values together",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """How samples are packed into tars."""

    max_bytes: int = _key("a shard is closed before it grows past this many bytes")
    partitions: int = _key("packing jobs that run side by side")

    def __post_init__(self) -> None:
        _obey(rules.check_max_bytes, self.max_bytes)
        _check_at_least("shard.partitions", self.partitions, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """The model and how it learns."""

    epochs: int = _key("passes over the train split", example="12")
    batch_size: int = _key("samples per optimiser step", example="64")
    image_size: int = _key("side of the square the model sees, pixels", example="64")
    lr: float = _key("peak learning rate", example="3e-3")
    seed: int = _key("fixes weights, order and augmentation")
    model: str = _key("convnet, or a name of torchvision.models where that is installed")
    device: str = _key("auto (a GPU when there is one), cpu, cuda or cuda:<n>")
    processes: int | None = _key(
        "processes that train together, one per device; null: one per visible GPU, one on the CPU"
    )
    precision: str = _key("auto (bfloat16 on a GPU that has it), float32 or bfloat16")
    compile: bool = _key("compile the model with torch.compile")
    optimizer: str = _key("adamw or sgd")
    momentum: float = _key("momentum of sgd")
    weight_decay: float = _key("weight decay of filters and matrices")
    warmup_epochs: float = _key("epochs over which the learning rate rises to its peak")
    cosine: bool = _key("the learning rate falls to zero along a cosine; false: it stays")
    label_smoothing: float = _key("share of the target spread over all classes")
    ema_decay: float = _key(
        "decay of the weights' running average, which is then what is judged and logged; 0: none"
    )
    accumulate: int = _key("parts that each process works off one by one for one optimiser step")
    clip_norm: float | None = _key("largest norm of the gradient; null: any", example="1.0")
    mixup_alpha: float = _key("mixup: shares are drawn from Beta(alpha, alpha); 0: off")
    cutmix_alpha: float = _key("cutmix: areas are drawn from Beta(alpha, alpha); 0: off")
    augment: str | None = _key("trivial, rand or auto, by DALI only; null: crop and flip alone")
    loader: str = _key("auto (dali on a GPU where it is installed, else tarpon), tarpon or dali")
    threads: int | None = _key("threads that decode, and torch's; null: one per core")
    checkpoint_every_s: float = _key("seconds between checkpoints inside an epoch")
    keep_checkpoints: int = _key("so many of the newest are kept")
    start_from: str | None = _key(
        "a checkpoint of a training with other settings (lr, clip_norm ...) to begin at; null: none"
    )
    allow_unproven: bool = _key("train on a version whose leakage proof is missing or failed")
    fresh: bool = _key("start over where a finished or interrupted training could go on")

    def __post_init__(self) -> None:
        _obey(rules.check_device, self.device)
        try:
            Settings(**{item.name: getattr(self, item.name) for item in fields(Settings)})
        except ValueError as error:
            raise ConfigError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """How the test split is judged."""

    batch_size: int = _key("samples per forward pass")

    def __post_init__(self) -> None:
        _check_at_least("evaluate.batch_size", self.batch_size, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """What a model must show to become the champion."""

    name: str | None = _key("name in the MLflow registry; null means data.name")
    min_accuracy: float = _key("test accuracy below which no model becomes champion")
    margin: float = _key("test accuracy by which the champion must be beaten")

    def __post_init__(self) -> None:
        if self.name is not None:
            _obey(rules.check_name, self.name, "register.name")
        least = self.min_accuracy
        _check(0 <= least <= 1, "register.min_accuracy", least, "0 to 1", "it is a share")
        _check(0 <= self.margin <= 1, "register.margin", self.margin, "0 to 1", "it is a share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlflow:
    """Where runs, datasets and models are logged."""

    uri: str | None = _key(
        "tracking server or database; travels as MLFLOW_TRACKING_URI, never in the config of a run",
        example="http://mlflow:5000",
    )
    experiment: str = _key("name of the MLflow experiment", example="tarpon")

    def __post_init__(self) -> None:
        _check(self.uri != "", "mlflow.uri", self.uri, "a URI", "drop it for the default")
        if self.uri is not None:
            _obey(rules.check_tracking_uri, self.uri)
        _check(self.experiment != "", "mlflow.experiment", self.experiment, "a name", "give one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """One Kubernetes toleration; the fields are Kubernetes' own."""

    key: str
    operator: str
    value: str | None
    effect: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodProfile:
    """What the pod of a step asks of the cluster; of no effect in a local run."""

    gpus: int = _key("GPUs; 0 for none")
    gpu_resource: str = _key("the resource a GPU is asked for by")
    cpu_request: str = _key("cores asked for")
    cpu_limit: str = _key("cores allowed")
    memory_request: str = _key("memory asked for")
    memory_limit: str = _key("memory allowed")
    shm: str | None = _key(
        "size of /dev/shm, in memory and counted there; null for the 64 MiB default"
    )
    retries: int = _key("times a failed step is started again")
    retry_wait: str = _key("wait before the first of them; doubles each time")
    node_selector: dict[str, str] = _key("labels a node must carry")
    tolerations: list[Toleration] = _key("taints the pod accepts")
    volumes: dict[str, str] = _key("volume claim -> the folder it is mounted at")
    secrets: dict[str, dict[str, str]] = _key(
        "secret name -> {key in it: environment variable}; a missing secret is not an error"
    )

    def __post_init__(self) -> None:
        _check_at_least("pod.<profile>.gpus", self.gpus, 0)
        _check_at_least("pod.<profile>.retries", self.retries, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """Which profile each kind of step gets: ``pod@pod.train=gpu_spot`` swaps one."""

    cpu: PodProfile
    train: PodProfile
    evaluate: PodProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a run depends on."""

    action: str = _key("run (here, now) or compile (write the pipeline's YAML)")
    output: str | None = _key("file that action=compile writes", example="pipeline.yaml")
    until: str | None = _key(f"stop after this step: {', '.join(STEPS)}", example="shard")
    data: Data
    store: Store
    ingest: Ingest
    split: Split
    shard: Shard
    train: Train
    evaluate: Evaluate
    register: Register
    mlflow: Mlflow
    pod: Pods

    def __post_init__(self) -> None:
        if self.action in PLANNED_ACTIONS:
            raise ConfigError(
                f"action={self.action!r}: not supported yet, supported are {', '.join(ACTIONS)}; "
                "compile the pipeline (action=compile output=pipeline.yaml) and upload the file "
                "in the Kubeflow UI"
            )
        allowed = f"one of {', '.join(ACTIONS)}"
        _check(self.action in ACTIONS, "action", self.action, allowed, "the default is run")
        allowed = f"a step: {', '.join(STEPS)}"
        known = self.until is None or self.until in STEPS
        _check(known, "until", self.until, allowed, "drop it to run all of them")
        if self.data.version and self.until in STEPS[: STEPS.index("train")]:
            raise ConfigError(
                f"until={self.until!r}: data.version={self.data.version!r} skips every step up to "
                "shard, so nothing is left to run; drop one of the two"
            )
        self._check_groups()
        self._check_test_share()
        if self.action == "compile" and not self.output:
            raise ConfigError(
                f"output={self.output!r}: action=compile needs a file to write; "
                "add for example output=pipeline.yaml"
            )

    def _check_groups(self) -> None:
        """Say at once what split would only find out when ingest has read every image."""
        wanted = self.split.strategy == "group" and self.split.by in (None, "group")
        if wanted and self.ingest.group is None and self.includes("split"):
            raise ConfigError(
                "ingest.group=None: split.strategy='group' keeps groups together, expected a "
                "regular expression whose first (..) captures the group from each file's path; "
                r"add for example 'ingest.group=([^/]+)-\d+\.jpg$'"
            )

    def _check_test_share(self) -> None:
        """Say before the training what evaluate would say after it."""
        if self.split.fractions[2] == 0 and self.includes("split") and self.includes("evaluate"):
            raise ConfigError(
                f"split.fractions={self.split.fractions!r}: leaves nothing to test, expected a "
                "last share above 0 for evaluate; raise it, or set until=train"
            )

    def includes(self, step: str) -> bool:
        """Whether ``step`` is part of the pipeline under ``until`` and ``data.version``."""
        if self.data.version and STEPS.index(step) <= STEPS.index("shard"):
            return False
        return self.until is None or STEPS.index(step) <= STEPS.index(self.until)

    def to_json(self, overrides: Sequence[str] = ()) -> str:
        """What the steps see: one JSON object, keys sorted, the same text for the same settings.

        Addresses (``store.endpoint``, ``mlflow.uri``) are left out: they travel as environment,
        so that the same configuration means the same run wherever it happens. So are the
        settings that are about this command and not about the run.

        Args:
            overrides: What was typed to get these settings, fit to be saved; train logs it.
        """
        tree = asdict(self)
        for name in ("action", "output", "pod"):
            del tree[name]
        del tree["store"]["endpoint"]
        del tree["mlflow"]["uri"]
        if overrides:
            tree["overrides"] = list(overrides)
        return json.dumps(tree, sort_keys=True)


def key_types(cls: Any = Config, prefix: str = "") -> dict[str, type]:
    """Every dotted key of the schema and its type, in the order of declaration."""
    found: dict[str, type] = {}
    hints = get_type_hints(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if is_dataclass(kind):
            found |= key_types(kind, f"{prefix}{item.name}.")
        else:
            found[f"{prefix}{item.name}"] = kind
    return found


def schema() -> DictConfig:
    """The schema as an OmegaConf node into which files and overrides can be merged.

    OmegaConf makes the node of a frozen dataclass read-only, which would refuse the very files
    that fill it, so the flag is lifted here; ``OmegaConf.to_object`` freezes the result again.
    """
    return _thawed(Config)


def _thawed(cls: Any) -> DictConfig:
    node: DictConfig = OmegaConf.structured(cls)
    OmegaConf.set_readonly(node, None)
    for name, kind in get_type_hints(cls).items():
        if is_dataclass(kind):
            node[name] = _thawed(kind)
        elif get_origin(kind) is dict:  # labels, claims and secrets: their keys are free
            node[name] = {}
            OmegaConf.set_struct(node[name], False)
    return node


def register_schema() -> None:
    """Make ``- schema`` in ``configs/config.yaml`` resolvable; safe to call again."""
    ConfigStore.instance().store(name="schema", node=schema())
