# crispseg for desktop and data-centre GPUs: TensorRT 10, CUDA 12, Python 3.12, compute capability 7.5 and newer.
# Not yet built or run.
#
#   docker build -f docker/desktop.Dockerfile -t crispseg:gpu .
#   docker run --rm -it --gpus all -v $PWD:/data crispseg:gpu crispseg doctor
#
# 25.06 holds TensorRT 10.11 with its headers and Python package, and nvcc 12.9. Engines belong to the TensorRT that built
# them: keep the tag while you keep the engines.
ARG BASE=nvcr.io/nvidia/tensorrt:25.06-py3
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 PATH=/opt/crispseg/bin:/usr/local/cuda/bin:${PATH}

RUN apt-get update && apt-get install -y --no-install-recommends g++ git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# --system-site-packages: the image's TensorRT is the one that the plugin library is compiled for.
RUN python3 -m venv --system-site-packages /opt/crispseg \
    && /opt/crispseg/bin/pip install --no-cache-dir --upgrade pip

COPY . /opt/src
# onnxruntime-gpu: the base of --backend cuda. TensorRT engines (--backend tensorrt) do not need it.
RUN cd /opt/src && pip install --no-cache-dir . onnxruntime-gpu

WORKDIR /data
CMD ["crispseg", "--help"]
