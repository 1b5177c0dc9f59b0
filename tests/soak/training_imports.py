"""What the fork server of tests.soak.training imports once for all its trainings."""

import importlib

for name in ("components.train.command", "mlflow.store.tracking.sqlalchemy_store", "torch._dynamo"):
    importlib.import_module(name)
