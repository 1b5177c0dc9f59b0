"""``python -m pipelines``: reads a configuration, then runs the pipeline here or compiles it.

Exit codes: 0 done, 1 the run failed, 2 the command was wrong, 130 Ctrl-C and 143
SIGTERM, both once the running steps have ended. Only this module writes to stdout: the summary of
a run, or what was asked for by ``--help`` and ``--cfg``.
"""

from __future__ import annotations

import argparse
import datetime
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from components.store import Store, StoreError, is_s3, local_path
from pipelines import compose, environment, usage
from pipelines.config import Config, ConfigError
from pipelines.local import LocalRun, PipelineFailed, PipelineStopped
from pipelines.summary import remarks, summarise
from pipelines.terminal import Terminal

RUNS = ".runs"
"""Folder under the store root that keeps, per local run, its settings, logs and reports."""

HERE = "tarpon-data"
"""What has that folder, where one stands, when the store root is no folder of this machine."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    options, overrides = _parse(sys.argv[1:] if arguments is None else arguments)
    terminal = Terminal()
    try:
        if options.help:
            print(usage.text(compose.printable(compose.compose_node())))
            return 0
        node = compose.compose_node(overrides)
        if options.cfg:
            compose.freeze(node)
            print(OmegaConf.to_yaml(compose.printable(node), resolve=True), end="")
            return 0
        config = compose.freeze(node)
        if config.action == "compile":
            return _compile(config, environment.storable(overrides), terminal)
        return _run(config, environment.storable(overrides), terminal)
    except ConfigError as error:
        terminal.error(str(error))
        return 2
    except StoreError as error:
        terminal.error(str(error))
        return 1
    except PipelineFailed as failure:
        terminal.error(f"{failure.step} failed: {failure.reason}")
        terminal.note(f"the step's whole log is {failure.log}")
        return 1
    except PipelineStopped as stopped:
        terminal.error(f"{stopped}; the same command goes on from what is finished")
        return 128 + stopped.number
    except KeyboardInterrupt:
        terminal.error("interrupted; the same command goes on from what is finished")
        return 130


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m pipelines", add_help=False, usage=usage.USAGE)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args(list(arguments))
    return options, options.overrides


def _compile(config: Config, overrides: Sequence[str], terminal: Terminal) -> int:
    from kfp import compiler

    from pipelines import image_training

    assert config.output is not None  # the schema's own check
    target = Path(config.output)
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"output={config.output!r}: expected a name that ends in .yaml, which KFP requires; "
            "try output=pipeline.yaml"
        )
    pods = environment.for_pods(config)
    dress = image_training.for_pods(pods.variables)
    graph = image_training.build(config, dress, overrides=overrides)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(graph, str(target))
    except OSError as error:
        raise ConfigError(
            f"output={config.output!r}: {error.strerror or error}, expected a file that can be "
            "written; choose another"
        ) from error
    for note in pods.notes:
        terminal.note(note)
    print(f"compiled {target}")
    return 0


def _run(config: Config, overrides: Sequence[str], terminal: Terminal) -> int:
    if not config.data.source and not config.data.version:
        raise ConfigError(
            "data.source is not set: expected the folder of images to read; add for example "
            "data.source=photos, or data.version=<version> to use a published dataset"
        )
    config = environment.localise(config, Path.cwd())
    folder = _run_folder(config)
    _save(folder, config, overrides)
    from pipelines import image_training  # kfp: slow to import, and not needed to say no

    with terminal:
        run = LocalRun(folder=folder, environment=environment.for_run(config), watcher=terminal)
        results = run.execute(image_training.build(config), config=config.to_json(overrides))
    for remark in remarks(results):
        terminal.note(remark)
    for line in summarise(results, config, folder):
        print(line)
    return 0


def _save(folder: Path, config: Config, overrides: Sequence[str]) -> None:
    (folder / "config.json").write_text(config.to_json() + "\n", encoding="utf-8")
    lines = "".join(f"{item}\n" for item in overrides)
    # file names are any bytes, which Python carries as surrogates
    (folder / "overrides.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")


def _run_folder(config: Config) -> Path:
    """A new folder for this run's settings, logs and reports, beside the data it makes.

    Whether a bucket can be written is left to the first step, which has its endpoint.
    """
    root = HERE if is_s3(config.store.root) else config.store.root
    Store(root).check_writable()
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = local_path(root) / RUNS / f"{moment}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    return folder
