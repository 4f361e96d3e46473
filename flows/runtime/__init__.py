"""One writer at a time, retries by cause, children that end with us, and what a kill leaves behind put right."""
