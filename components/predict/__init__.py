"""Predict step. Importing it decides how torch's OpenMP threads wait, before torch is loaded."""

import os

# Spinning threads would take the cores from the loader's decode threads; see components.evaluate.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
