"""Wiring and concurrency: Prefect flows and the command line."""

import os

SPIN_COUNT = "1000"
"""How many turns threads of GNU OpenMP, which torch computes with on a CPU, spin while they wait
for each other, before they sleep. By default they spin for milliseconds: lost, where others want
the cores too. This costs next to nothing on quiet cores (``benchmarks/busy_cores.py``)."""

# An exception to the rule that modules change nothing when they are imported: the library reads
# this once, when torch is loaded, and flows are what owns a process.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
