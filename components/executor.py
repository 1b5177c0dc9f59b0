"""KFP's executor protocol for steps in exec form: one command in a pod, locally and by hand.

A step in exec form is started as `python3 -m components.<step> --executor-input JSON`, so that
signals reach Python and no kfp is needed in the image. This module reads what the launcher says
in that JSON and writes the answer it expects. It knows nothing of any step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MOUNTS = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/"}
"""Where the launcher keeps the local copy of an artifact of each scheme."""


class ExecutorInputError(ValueError):
    """The executor input is not what a launcher sends; the message names what is missing."""


class Task:
    """One KFP task, seen from inside its container.

        task = Task.from_json(arguments.executor_input)
        settings = task.config()["train"]
        pointer = json.loads(task.input_path("dataset").read_text(encoding="utf-8"))
        report.write(task.output_path("model"))
        task.set_metadata("metrics", {"accuracy": 0.93})
        task.finish()

    Nothing is announced before `finish`: a step that dies leaves no outputs.
    """

    def __init__(self, executor_input: Mapping[str, Any]) -> None:
        self._inputs = executor_input.get("inputs", {})
        self._outputs = executor_input.get("outputs", {})
        self._parameters: dict[str, str | int | float] = {}
        self._metadata: dict[str, dict[str, Any]] = {}
        if "outputFile" not in self._outputs:
            raise ExecutorInputError(
                "executor input: found no outputs.outputFile, expected the JSON that KFP's "
                "launcher passes; by hand use the step's own options (see --help)"
            )

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Parse the argument of `--executor-input`.

        Raises:
            ExecutorInputError: Not JSON, or not an executor input.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ExecutorInputError(f"executor input: {error}, expected a JSON object") from error
        if not isinstance(values, dict):
            raise ExecutorInputError(f"executor input: found {text!r}, expected a JSON object")
        return cls(values)

    def parameter(self, name: str) -> Any:
        """An input parameter's value."""
        values = self._inputs.get("parameterValues", {})
        if name not in values:
            raise ExecutorInputError(
                f"executor input: found the parameters {sorted(values)}, expected {name!r}"
            )
        return values[name]

    def config(self) -> dict[str, Any]:
        """The pipeline's whole config. It travels as one JSON string: KFP makes floats of ints."""
        values: dict[str, Any] = json.loads(self.parameter("config"))
        return values

    def input_path(self, name: str) -> Path:
        """The local file or folder of an input artifact."""
        return _local(_only(self._inputs, name))

    def output_path(self, name: str) -> Path:
        """Where to write an output artifact; its folder is made."""
        path = _local(_only(self._outputs, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def set_parameter(self, name: str, value: str | int | float) -> None:
        """Set an output parameter."""
        if name not in self._outputs.get("parameters", {}):
            raise ExecutorInputError(f"executor input: no output parameter {name!r} is declared")
        self._parameters[name] = value

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Set an output artifact's metadata; for `Metrics` these are what the UI shows."""
        _only(self._outputs, name)
        self._metadata[name] = dict(metadata)

    def finish(self) -> None:
        """Write the executor output, which is what the launcher and `kfp.local` read."""
        for name, value in self._parameters.items():
            file = Path(self._outputs["parameters"][name]["outputFile"])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(value), encoding="utf-8")
        artifacts = {}
        for name in self._outputs.get("artifacts", {}):
            declared = _only(self._outputs, name)
            metadata = {**declared.get("metadata", {}), **self._metadata.get(name, {})}
            found = {"name": declared["name"], "uri": declared["uri"], "metadata": metadata}
            artifacts[name] = {"artifacts": [found]}
        answer = {"parameterValues": self._parameters, "artifacts": artifacts}
        file = Path(self._outputs["outputFile"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(answer), encoding="utf-8")


def confusion_metadata(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A confusion matrix as KFP's `ClassificationMetrics` keeps it; rows are true classes."""
    return {
        "confusionMatrix": {
            "annotationSpecs": [{"displayName": name} for name in classes],
            "rows": [{"row": list(row)} for row in matrix],
        }
    }


def _only(side: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    artifacts = side.get("artifacts", {})
    found = artifacts.get(name, {}).get("artifacts", [])
    if len(found) != 1:
        raise ExecutorInputError(
            f"executor input: found the artifacts {sorted(artifacts)}, expected one {name!r}"
        )
    artifact: Mapping[str, Any] = found[0]
    return artifact


def _local(artifact: Mapping[str, Any]) -> Path:
    if custom := artifact.get("customPath") or artifact.get("custom_path"):
        return Path(custom)
    uri = str(artifact["uri"])
    for scheme, mount in _MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount + uri.removeprefix(scheme))
    return Path(uri)
