"""KFP wrappers of shard: plan, then pack for each job, then seal; they convert types only."""

from typing import List  # noqa: UP035  (what KFP's type checker knows)

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(config: str, split: dsl.Input[dsl.Dataset], plan: dsl.Output[dsl.Dataset]) -> List[str]:  # noqa: UP006
    """Name the version and cut the packing into jobs, one string each."""
    import json
    from pathlib import Path

    from components.shard import run

    options = json.loads(config)
    data, root = options["data"], options["store"]["root"]
    url = json.loads(Path(split.path).read_text(encoding="utf-8"))["catalog_url"]
    report = run.plan(
        url, root=root, name=data["name"], version=data["version"], **options["shard"]
    )
    report.write(plan.path)
    plan.metadata.update(report.summary())
    return report.jobs


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pack(job: str, part: dsl.Output[dsl.Dataset]) -> int:
    """Write one job's tars to the store; `part` says which, the tars never travel as artifacts."""
    from components.shard import run

    report = run.pack(job)
    report.write(part.path)
    part.metadata.update(report.summary())
    return len(report.shards)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def seal(
    config: str,
    plan: dsl.Input[dsl.Dataset],
    parts: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    dataset: dsl.Output[dsl.Dataset],
) -> str:
    """Seal, verify and publish the version; `dataset` is a small JSON that points to it."""
    import json

    from components.rules import NEAR_DUPLICATE_BITS
    from components.shard import run

    options = json.loads(config)
    url = run.Plan.read(plan.path).dataset_url
    run.seal(url, [run.PackReport.read(part.path) for part in parts])
    bits = options["split"].get("near_duplicate_bits", NEAR_DUPLICATE_BITS)
    run.verify(url, near_duplicate_bits=bits)
    report = run.publish(url, config=options)
    report.write(dataset.path)
    dataset.metadata.update(report.summary())
    return report.dataset_url
