"""KFP wrapper of profile: converts types and nothing more."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def profile(config: str, catalog: dsl.Input[dsl.Dataset], page: dsl.Output[dsl.HTML]) -> str:
    """Describe the catalog that `catalog` points to, in one self-contained HTML page.

    `config` is not read: this step has no options, but every step takes it in the same place.
    """
    import json

    from components.profile import run

    with open(catalog.path, encoding="utf-8") as file:
        catalog_url = json.load(file)["catalog_url"]
    page.uri += ".html"  # so that a browser opens the local file too
    report = run.profile(catalog_url, output=page.path)
    page.metadata.update(report.summary())
    return report.path
