"""KFP face of the predict step, in exec form like evaluate."""

from kfp import dsl

from components import IMAGE


@dsl.container_component
def predict(
    model: str,
    shards: str,
    output: str,
    predictions: dsl.Output[dsl.Dataset],
    batch_size: int = 256,
    device: str = "auto",
):
    """Score the images of `shards` with `model` into `output`; `predictions` points there."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python3", "-m", "components.predict"],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
