"""Run work safely: child processes, retries, service errors, GPU locks and the process environment."""
