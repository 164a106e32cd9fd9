# syntax=docker/dockerfile:1
# recstream for CPUs: workers, trainer and tools. From the repository's root:
#
#   docker build -f deploy/docker/cpu.Dockerfile -t recstream:0.1.0-cpu .
#
# --build-arg EXTRAS=train,dp adds the project's own extras, PIP_EXTRA other packages, such as s3fs for a registry at
# s3://...

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=""
ARG PIP_EXTRA=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# torch first and alone: it is the largest layer and changes least.
RUN python -m venv /opt/recstream \
 && /opt/recstream/bin/pip install --index-url "${TORCH_INDEX}" "torch==2.13.0"
COPY pyproject.toml README.md LICENSE deploy/docker/constraints.txt ./
COPY state ./state
COPY models ./models
COPY streams ./streams
# Compiled here, a volume mounted over /var/lib/recstream starts with the kernels of this machine's processor
# (-P: of the installed modules, not of those in /src).
# hadolint ignore=DL3013,SC2086
RUN /opt/recstream/bin/pip install --constraint constraints.txt ".${EXTRAS:+[${EXTRAS}]}" ${PIP_EXTRA} \
 && NUMBA_CACHE_DIR=/var/lib/recstream/numba /opt/recstream/bin/python -P -m streams.warmup

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="recstream" \
      org.opencontainers.image.description="Streaming, online-learning, sequential recommendations on Kafka" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 recstream \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin recstream
COPY --from=build /opt/recstream /opt/recstream
COPY --from=build --chown=10001:10001 /var/lib/recstream /var/lib/recstream
COPY deploy/docker/healthcheck.py /opt/recstream/healthcheck.py
RUN install -d -o 10001 -g 10001 /var/lib/recstream /var/lib/recstream/state /var/lib/recstream/cache /var/lib/registry
# Everything that is written lies below /var/lib and /tmp, so the root file system can be mounted read-only.
# In a container the address to listen on is its own network's; who reaches it is decided outside.
ENV PATH=/opt/recstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/var/lib/recstream/numba \
    RECSTREAM_HTTP_HOST=0.0.0.0 \
    RECSTREAM_STATE_DIR=/var/lib/recstream/state \
    RECSTREAM_CACHE_DIR=/var/lib/recstream/cache \
    RECSTREAM_REGISTRY=/var/lib/registry
WORKDIR /var/lib/recstream
USER 10001:10001
EXPOSE 6066 6166
STOPSIGNAL SIGTERM
# Compiling the kernels for another processor than the build's takes about a minute before a worker listens.
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=4 \
    CMD ["python", "/opt/recstream/healthcheck.py", "worker"]
ENTRYPOINT ["recstream"]
CMD ["worker"]
