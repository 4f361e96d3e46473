"""What people see of nights: the terminal, logs, Prefect's pages, notifications."""
