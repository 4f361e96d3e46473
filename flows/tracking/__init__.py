"""MLflow runs, metrics and model versions."""
