"""The step that takes the place of ingest to shard when ``data.version`` names a version."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def published(config: str, dataset: dsl.Output[dsl.Dataset]) -> str:
    """Find a published version; `dataset` is the same small JSON that seal writes."""
    import dataclasses
    import json
    from pathlib import Path

    from components import manifest, rules
    from components.store import Store

    options = json.loads(config)
    store, data = Store(options["store"]["root"]), options["data"]
    found = manifest.read(store.url(data["name"], data["version"]))
    samples = {name: info.samples for name, info in found.splits.items()}
    rules.check_enough(samples, found.classes, until=options["until"], where=found.url)
    pointer = {
        "dataset_url": found.url,
        "name": found.name,
        "version": found.version,
        "digest": found.digest,
        "catalog_id": found.catalog["id"],
        "splits": {name: dataclasses.asdict(info) for name, info in found.splits.items()},
        "classes": found.classes,
    }
    Path(dataset.path).parent.mkdir(parents=True, exist_ok=True)
    Path(dataset.path).write_text(json.dumps(pointer), encoding="utf-8")
    counts = {f"samples.{name}": count for name, count in samples.items()}
    dataset.metadata.update({"version": found.version, "digest": found.digest} | counts)
    return found.url
