"""KFP face of the train step, in exec form: signals reach Python, and the image needs no kfp."""

from kfp import dsl

from components import IMAGE


@dsl.container_component
def train(
    config: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    run_id: dsl.OutputPath(str),
):
    """Train on the version `dataset` points to; `model` is a small JSON with the logged model."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python3", "-m", "components.train"],
        args=[
            *("--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER),
            *("--kfp-run", dsl.PIPELINE_JOB_ID_PLACEHOLDER),
            *("--kfp-task", dsl.PIPELINE_TASK_NAME_PLACEHOLDER),
        ],
    )
