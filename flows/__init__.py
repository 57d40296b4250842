"""Wiring and concurrency: Prefect flows and the command line."""

import os

SPIN_COUNT = "1000"
"""How long threads of GNU OpenMP, which torch computes with on a CPU, spin while they wait for each
other, before they sleep. By default it is milliseconds: lost, where others want the cores too. This
costs nothing on quiet cores (``benchmarks/busy_cores.py``)."""

# Read once, when torch is loaded; it never is before this.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
