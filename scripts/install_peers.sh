#!/usr/bin/env bash
# Installs the peers that only `make bench` measures, beside the torch that is there.
set -euo pipefail

# --no-deps: litdata and mosaicml-streaming ask for torchvision, the latter for transformers and the
# clients of several clouds too; no case uses them, and torchvision would bring another torch.
"${PYTHON:-.venv/bin/python}" -m pip install --quiet --no-deps \
    litdata==0.2.76 lightning-utilities==0.15.3 \
    mosaicml-streaming==0.13.0 brotli==1.2.1 catalogue==2.0.10 cramjam==2.14.0 \
    python-snappy==0.7.3 xxhash==3.8.2 zstd==1.5.7.2 \
    simplejpeg==1.9.0 \
    s3torchconnector==1.5.0 s3torchconnectorclient==1.5.0 obstore==0.12.1
