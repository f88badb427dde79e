# crispseg for Jetson AGX Xavier, Xavier NX and Orin with JetPack 5.1 (Jetson Linux 35.x): TensorRT 8.5.2, CUDA 11.4,
# Python 3.8, GPUs of compute capability 7.2 and 8.7. Not yet built or run on a device.
#
#   docker build -f docker/jetpack5.Dockerfile -t crispseg:jetpack5 .
#   docker run --rm -it --runtime nvidia -v $PWD:/data crispseg:jetpack5 crispseg doctor
#
# The -devel image has nvcc and TensorRT's headers, which the plugin library is compiled with; build it on the device
# itself (on a PC it needs QEMU and takes long). The CUDA driver comes from the device through --runtime nvidia.
ARG BASE=nvcr.io/nvidia/l4t-tensorrt:r8.5.2.2-devel
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 PATH=/opt/crispseg/bin:/usr/local/cuda/bin:${PATH}

# python3-libnvinfer: TensorRT for the system's Python 3.8, in case the image lacks it. NVIDIA's source is in the image.
RUN apt-get update && apt-get install -y --no-install-recommends \
      g++ git python3-dev python3-pip python3-venv \
    && (python3 -c "import tensorrt" || apt-get install -y --no-install-recommends python3-libnvinfer) \
    && rm -rf /var/lib/apt/lists/*

# --system-site-packages: TensorRT's Python package lies in the system's folders and cannot be had with pip for aarch64.
RUN python3 -m venv --system-site-packages /opt/crispseg \
    && /opt/crispseg/bin/pip install --no-cache-dir --upgrade pip

COPY . /opt/src
# The wheel of CMake that the build fetches is newer than the system's 3.16, which is too old.
RUN cd /opt/src && pip install --no-cache-dir ".[onnxruntime]"

WORKDIR /data
CMD ["crispseg", "--help"]
