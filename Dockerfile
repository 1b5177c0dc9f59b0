# The one image of every step, and of the MLflow server in k8s/base/mlflow.
#
#   docker build -t tarpon:0.1.0 .
#   docker build -t tarpon:0.1.0-cpu --build-arg EXTRAS=pipelines \
#       --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
#
# The first stage has a compiler and makes the wheel; the second installs it and keeps no tools.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        build-essential cmake libcurl4-openssl-dev libjpeg62-turbo-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY loader loader
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# `dali-cuda13` for drivers of CUDA 13; `pipelines` alone for a cluster without GPUs.
ARG EXTRAS=s3,dali-cuda12,pipelines,vision
ARG PIP_EXTRA_INDEX_URL
# Debian's security updates are wanted, so versions are left to the release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libcurl4 libjpeg62-turbo \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home --home-dir /srv/tarpon tarpon
# Every version is pinned by constraints.txt; no step ever runs pip when it starts.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    python3 -m pip install --no-cache-dir --constraint /constraints.txt \
        "$(echo /wheels/tarpon-*.whl)[${EXTRAS}]"
COPY components /app/components
COPY pipelines /app/pipelines
COPY configs /app/configs

# What MLflow and dataset.json call the code: docker build --build-arg CODE_VERSION=$(git rev-parse HEAD)
ARG CODE_VERSION=0.1.0
ENV TARPON_CODE_VERSION=${CODE_VERSION} \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /srv/tarpon
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
CMD ["python3", "-m", "pipelines", "--help"]
