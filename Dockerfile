# mimcl for NVIDIA GPUs: torch and DALI bring the CUDA 13 runtime as wheels, the host needs only the driver and NVIDIA's
# container toolkit. It also runs without a GPU.
#   docker build --tag mimcl .
#   docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" --volume "$PWD:/work" mimcl train --curriculum proto
# (--ipc host: several processes share memory.) Checked with hadolint; it has not been built yet.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS base
# For --compile, which also calls openssl. Debian's release fixes the versions closely enough.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ openssl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 mimcl \
    && mkdir /work \
    && chown mimcl /work
WORKDIR /work

# For .devcontainer: the user and the compilers alone; `tools/test.sh` installs into the checkout.
FROM base AS dev
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
USER 1000
CMD ["bash"]

FROM base AS build
WORKDIR /src
RUN python -m venv /opt/mimcl
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY curriculum curriculum
COPY model model
COPY cli cli
ARG EXTRAS=cuda13,hf,s3,gs,http
RUN /opt/mimcl/bin/pip install --no-cache-dir --disable-pip-version-check ".[${EXTRAS}]"

FROM base
COPY --from=build /opt/mimcl /opt/mimcl
# A user given by --user has neither a home, where caches are, nor a name, of which torch.compile makes a folder.
ENV PATH=/opt/mimcl/bin:$PATH \
    HOME=/tmp/home \
    LOGNAME=mimcl
RUN mkdir --mode 1777 /tmp/home
USER 1000
ENTRYPOINT ["mimcl"]
CMD ["--help"]
