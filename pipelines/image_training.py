"""The graph of the image-training pipeline: which steps, in which order, in which pods.

    ingest -> split -> plan -> pack (one per job) -> seal -> train -> evaluate -> register
              split -> profile

Profile comes after split, so that its page can say how much the splits differ; under
``until=profile`` it reads what ingest saw.

What a step does is in ``components/<step>/``; only small JSON reports travel along the arrows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kfp import dsl
from kfp.dsl import base_component

from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.profile.component import profile
from components.register.component import register
from components.shard.component import pack, plan, seal
from components.split.component import split
from components.train.component import train
from pipelines import pod
from pipelines.config import Config, PodProfile
from pipelines.published import published

NAME = "image-training"

Dress = Callable[[dsl.PipelineTask, PodProfile], None]


def for_pods(environment: Mapping[str, str]) -> Dress:
    """How tasks of a compiled pipeline are dressed: pod profile and environment."""

    def dress(task: dsl.PipelineTask, profile: PodProfile) -> None:
        pod.apply(task, profile, environment)

    return dress


def build(
    settings: Config, dress: Dress | None = None, *, overrides: Sequence[str] = ()
) -> base_component.BaseComponent:
    """The pipeline of one configuration: ``until`` and ``data.version`` decide what is in it.

    Args:
        settings: Checked configuration; its JSON is the default of the one parameter, ``config``.
        dress: Applied to every task with the profile it should have; None where there are no
            pods.
        overrides: See `Config.to_json`.
    """

    def place(task: dsl.PipelineTask, name: str, profile: PodProfile) -> dsl.PipelineTask:
        # KFP's cache key is the image's name and the arguments: it sees neither new code under
        # the same tag nor new files under the same source. Steps are idempotent and skip what
        # is done by looking at the store, so its cache stays off.
        task.set_caching_options(enable_caching=False)
        task.set_display_name(name)
        if dress is not None:
            dress(task, profile)
        return task

    @dsl.pipeline(
        name=NAME,
        display_name="Image training",
        description="Images to a registered model; `config` is the whole configuration as JSON.",
    )
    def image_training(config: str = settings.to_json(overrides)) -> None:
        dataset = _data_steps(settings, place, config)
        if dataset is not None:
            _model_steps(settings, place, config, dataset)

    return image_training


def _data_steps(settings: Config, place: Callable[..., Any], config: Any) -> Any:
    """From images to the pointer to a published version; None when ``until`` ends before it."""
    cpu = settings.pod.cpu
    if settings.data.version:
        return place(published(config=config), "Published version", cpu).outputs["dataset"]
    seen = place(ingest(config=config), "Ingest", cpu)
    rows = seen.outputs["catalog"]
    if settings.includes("split"):
        rows = place(split(config=config, catalog=rows), "Split", cpu).outputs["split"]
    if settings.includes("profile"):
        place(profile(config=config, catalog=rows), "Profile", cpu)
    if not settings.includes("shard"):
        return None
    planned = place(plan(config=config, split=rows), "Plan shards", cpu)
    with dsl.ParallelFor(items=planned.outputs["Output"], name="Pack shards") as job:
        packed = place(pack(job=job), "Pack", cpu)
    sealed = seal(
        config=config,
        plan=planned.outputs["plan"],
        parts=dsl.Collected(packed.outputs["part"]),
    )
    return place(sealed, "Seal, verify, publish", cpu).outputs["dataset"]


def _model_steps(settings: Config, place: Callable[..., Any], config: Any, dataset: Any) -> None:
    """From a published version to a registered model, as far as ``until`` says."""
    if not settings.includes("train"):
        return
    trained = place(train(config=config, dataset=dataset), "Train", settings.pod.train)
    if not settings.includes("evaluate"):
        return
    model = trained.outputs["model"]
    judged = place(evaluate(config=config, model=model), "Evaluate", settings.pod.evaluate)
    if not settings.includes("register"):
        return
    found = judged.outputs["evaluation"]
    place(register(config=config, evaluation=found), "Register", settings.pod.cpu)
