"""Run work safely: child processes, retries, service errors, cancellation, GPU locks and the process environment."""
