"""KFP wrapper of ingest: converts types and nothing more."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(config: str, catalog: dsl.Output[dsl.Dataset]) -> str:
    """Catalogue the images of `data.source`; `catalog` is a small JSON that points to the rows."""
    import json

    from components.ingest import run

    options = json.loads(config)
    data, root = options["data"], options["store"]["root"]
    report = run.ingest(data["source"], root=root, name=data["name"], **options["ingest"])
    report.write(catalog.path)
    catalog.metadata.update(report.summary())
    return report.catalog_url
