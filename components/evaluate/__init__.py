"""Evaluate step. Importing it decides how torch's OpenMP threads wait, before torch is loaded."""

import os

# Spinning threads would take the cores from the loader's decode threads: 1.4 times slower on two
# cores, and many times slower where another process wants them too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
