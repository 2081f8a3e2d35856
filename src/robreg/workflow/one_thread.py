"""Give BLAS one thread in a process that imports this module first.

BLAS reads the number of its threads when it is loaded, and the last bits of results depend on it. The server of
robreg.workflow.fork_server imports this module. The environment cannot be changed in the Snakemake process that starts
the server, because other threads start processes there at the same time.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
