"""Log rounds in MLflow: runs, metrics, model versions."""
