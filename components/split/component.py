"""KFP wrapper of split: converts types and nothing more."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def split(config: str, catalog: dsl.Input[dsl.Dataset], split: dsl.Output[dsl.Dataset]) -> str:
    """Give every sample a side; `split` is a small JSON that points to the new catalog."""
    import json
    from pathlib import Path

    from components import rules
    from components.split import run

    options = json.loads(config)
    root, name = options["store"]["root"], options["data"]["name"]
    url = json.loads(Path(catalog.path).read_text(encoding="utf-8"))["catalog_url"]
    report = run.split(url, root=root, name=name, **options["split"])
    rules.check_enough(
        report.counts, report.classes, until=options["until"], where=report.catalog_url
    )
    report.write(split.path)
    split.metadata.update(report.summary())
    return report.catalog_url
