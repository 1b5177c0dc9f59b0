"""What one step of the pipeline does: plain functions in `run.py`, a thin KFP wrapper beside each.

Steps never import one another.  They meet through artifacts (small JSON reports) and through the
shared nouns of this folder: `store`, `catalog`, `manifest`, `report` and `progress`.
"""

import os

#: The one image every step runs in; a cluster pins it by digest through the environment.
IMAGE = os.environ.get("TARPON_IMAGE", "tarpon:0.1.0")
