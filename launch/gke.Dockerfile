# The image that launch/gke.py runs, from the root of the checkout (EXTRA: tpu or cuda13):
#
#   docker build -f launch/gke.Dockerfile --build-arg EXTRA=tpu -t IMAGE . && docker push IMAGE
FROM python:3.12-slim
ARG EXTRA=tpu
WORKDIR /nasjax
COPY setup.py pyproject.toml README.md LICENSE ./
COPY nasjax nasjax
RUN pip install --no-cache-dir ".[${EXTRA},grain,images,quickstart]"
COPY configs configs
COPY launch launch
# Where GKE puts the NVIDIA driver; elsewhere the directory is not there.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64
