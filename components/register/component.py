"""KFP face of the register step."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    config: str, evaluation: dsl.Input[dsl.Dataset], registration: dsl.Output[dsl.Dataset]
) -> str:
    """Pass the measured model through the gate; returns `<name> <version> <alias>`."""
    import json

    from components.links import mlflow_version_metadata
    from components.register import run

    settings = json.loads(config)
    with open(evaluation.path, encoding="utf-8") as file:
        measured = run.measured(json.load(file))
    gate = settings["register"]
    report = run.register(
        **measured,
        name=gate["name"] or settings["data"]["name"],
        min_accuracy=gate["min_accuracy"],
        margin=gate["margin"],
    )
    report.write(registration.path)
    pages = mlflow_version_metadata(report.name, report.version)
    registration.metadata.update(report.summary() | pages)
    return f"{report.name} {report.version} {report.alias}"
