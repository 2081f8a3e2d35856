"""Give BLAS one thread in the process that imports this first: what it has when it loads decides the last bits.

The server of robreg.workflow.fork_server does. Where that is started from, threads of Snakemake start processes too:
a change of the environment there would pull it from under them.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
