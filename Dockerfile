# Training without a GPU:  docker build -t rlexp .
# With one:                docker build -t rlexp --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# A run (docs/installation.md):
#   docker run --rm --user "$(id -u)" -v "$PWD/outputs:/home/rlexp/outputs" rlexp rlexp-train env=hopper
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=box2d,dm-control,export,joblib,pixels,search,tensorboard,video
# The version that the package calls itself: the build has no git.
ARG VERSION=0.2.0.dev0

# MuJoCo renders without a display
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libopengl0 \
    && rm -rf /var/lib/apt/lists/*
# torch first and by itself: its index has nothing else, and its layer outlives changes of the code
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.11,<2.14"
COPY pyproject.toml README.md LICENSE /src/
COPY conf /src/conf
COPY src /src/src
RUN SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION" pip install --no-cache-dir "/src[$EXTRAS]"

# a home that any user may write to
ENV HOME=/home/rlexp MUJOCO_GL=egl
WORKDIR /home/rlexp
RUN chmod 777 /home/rlexp
CMD ["rlexp-doctor"]
