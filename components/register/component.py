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
        measured = json.load(file)
    gate = settings["register"]
    report = run.register(
        **{field: measured[field] for field in run.MEASURED},
        name=gate["name"] or settings["data"]["name"],
        min_accuracy=gate["min_accuracy"],
        margin=gate["margin"],
        comparison=run.Comparison(
            champion=measured["champion_version"],
            met=measured["champion_met"],
            samples=measured["samples"] - measured["champion_met"],
            digest=measured["compared_digest"],
            accuracy=measured["compared_accuracy"],
            note=measured["champion_note"],
        ),
    )
    report.write(registration.path)
    pages = mlflow_version_metadata(report.name, report.version)
    registration.metadata.update(report.summary() | pages)
    return f"{report.name} {report.version} {report.alias}"
