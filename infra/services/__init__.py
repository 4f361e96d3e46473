"""Real services on loopback for one team or one test: PostgreSQL, an S3 server, MLflow and Prefect."""
