"""WHEN: order, retries, schedules, rounds and side effects. The only package that knows Prefect."""
