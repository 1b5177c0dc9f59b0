"""What the fork server of tests.soak.training imports once for all its trainings."""

import importlib

for name in (
    "components.train.command",
    "mlflow.store.tracking.sqlalchemy_store",
    "components.figures",  # the first step of a new training
    "components.train.export",  # and its end
    "torch._dynamo",
    "networkx",
):
    importlib.import_module(name)
