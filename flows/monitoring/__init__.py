"""Show people what runs do: terminal, JSON logs, Prefect artifacts, notifications."""
