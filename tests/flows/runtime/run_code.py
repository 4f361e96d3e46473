"""Run the code in the first argument: ``python -m tests.flows.runtime.run_code CODE``."""

import sys

if __name__ == "__main__":
    exec(sys.argv[1])
