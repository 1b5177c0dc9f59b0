"""What one step of the pipeline does: plain functions in `run.py`, a thin KFP wrapper beside each.

Steps never import one another.  They meet through artifacts (small JSON reports) and through what
lies beside them in this folder:

    what is kept    store, catalog, manifest, report
    what is asked   rules (what settings may be), code (which code this is)
    pictures        phash, duplicates, figures
    training data   loading (a version as batches)
    trained models  logged_model (what an MLflow URI names)
    the outside     executor (KFP's protocol), tracking (MLflow), progress (a person),
                    lifetime (a child ends with its parent)
"""

import os

#: The one image every step runs in; a cluster pins it by digest through the environment.
IMAGE = os.environ.get("TARPON_IMAGE", "tarpon:0.1.0")
