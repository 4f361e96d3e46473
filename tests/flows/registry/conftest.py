"""What tests of publishing and promoting share."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.tracking.mlflow_run import silence_mlflow


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database of MLflow: its tables take seconds to make."""
    silence_mlflow()
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
