"""Log rounds in MLflow: runs, metrics, model versions; close the runs of crashed processes."""
