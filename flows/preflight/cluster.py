"""Check the Ray cluster that inference would use."""

from flows.preflight.runner import CheckContext, CheckSkipped, Finding, failed, passed, warned
from flows.preflight.services import run_probe
from tasks.runtime.errors import UserError

CLUSTER_LIMIT_S = 240.0


def check_cluster(context: CheckContext) -> Finding:
    """Check token, versions, room for workers, and that every node sees the campaign's files and has the same code."""
    try:
        params = context.params.infer
    except UserError:
        raise CheckSkipped("params.yaml is broken") from None
    if params.engine == "local":
        return passed("infer.engine is local: no cluster is used")
    try:
        facts = run_probe("tasks.model.engines.ray_probe", [], cwd=context.workspace.root, limit_s=CLUSTER_LIMIT_S - 5)
    except UserError as error:
        return failed(error.problem, "docs/guides/scale.md says how a cluster is started and joined.")
    found = f"Ray {facts['version']}, {facts['nodes']}"
    if facts["problems"]:
        more = f" and {len(facts['problems']) - 1} more" if len(facts["problems"]) > 1 else ""
        return failed(f"{facts['problems'][0]}{more}; {found}", "Use one image and one shared folder on all nodes.")
    if not facts["workers"]:
        fix = "Lower infer.engine_cpus_per_worker, or start nodes with more CPUs: inference would wait until it ends."
        return failed(f"no node has room for a worker; {found}", fix)
    if params.engine_workers != "auto" and facts["workers"] < params.engine_workers:
        fix = "Lower infer.engine_workers, or let nodes join: they are used as soon as they are there."
        return warned(f"room for {facts['workers']} of {params.engine_workers} workers; {found}", fix)
    return passed(f"{found}: room for {facts['workers']} workers, all nodes see the campaign")
