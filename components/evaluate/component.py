"""KFP face of the evaluate step, in exec form like train."""

from kfp import dsl

from components import IMAGE


@dsl.container_component
def evaluate(
    config: str,
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
):
    """Measure the model on the test split of the version it was trained on."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python3", "-m", "components.evaluate"],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
