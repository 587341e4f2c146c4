# A worker with NVIDIA GPUs: everything PASER needs but the project itself, which is a clone mounted at /work.
# docs/gpus.md tells how to build and run it. NOT RUN: it was checked without a GPU and without a Docker daemon
# (hadolint, tests/test_docker.py and pip's resolver), so the first build and the first GPU are yours.
FROM python:3.11-slim-bookworm

# git for DVC and checkouts; a C compiler because Triton builds its launchers when it runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# torch's wheels bring CUDA; the host brings the driver, through the NVIDIA container toolkit.
# hadolint takes TOKENIZERS_PARALLELISM for a secret.
# hadolint ignore=DL3064
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1 \
    PIP_NO_CACHE_DIR=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    RAY_USAGE_STATS_ENABLED=0 \
    TOKENIZERS_PARALLELISM=false

WORKDIR /opt/paser
COPY pyproject.toml constraints-cuda.txt README.md LICENSE dvc.yaml params.yaml ./
COPY data/sources.yaml data/
COPY paser paser
RUN pip install --constraint constraints-cuda.txt '.[flows,ray]'

# The clone's code goes before the installed one, so that what runs is the commit that DVC records.
ENV PYTHONPATH=/work
RUN useradd --create-home --uid 1000 worker \
    && git config --system --add safe.directory /work
USER 1000
WORKDIR /work
CMD ["paser", "--help"]
