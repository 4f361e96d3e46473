"""Times functions of one version of the code on request, in a process of its own. Standard library only.

A request is the name of a function on a line of the standard input; the answer is a line of JSON. So several versions
can take turns on the same machine.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping


def serve(functions: Mapping[str, Callable[[], object]]) -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # what a library prints is no answer
    print(json.dumps(list(functions)), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(time_call(functions[line.strip()])), file=answers, flush=True)


def time_call(function: Callable[[], object]) -> dict[str, float]:
    """Wall time and processor time of one call, in seconds; processes that it started and ended count."""
    cpu_s, wall_s = _processor_time_s(), time.perf_counter()
    function()
    return {"wall_s": time.perf_counter() - wall_s, "cpu_s": _processor_time_s() - cpu_s}


def _processor_time_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
