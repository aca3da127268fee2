# docker build -t diffsel .                                                                           for CPUs
# docker build -t diffsel --build-arg BASE=pytorch/pytorch:2.7.0-cuda12.6-cudnn9-runtime .            for GPUs
# docker run --rm --gpus all -v "$PWD:/work" diffsel distill photos/train --out run --ipc 10
ARG BASE=python:3.12-slim
FROM ${BASE}
COPY . /src
# torch without CUDA's gigabytes for CPUs; where BASE brings torch, that one stays
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --extra-index-url "${TORCH}" '/src[datasets,timm,tensorboard]' && rm -rf /src
WORKDIR /work
ENV HF_HOME=/work/.huggingface
ENTRYPOINT ["diffsel"]
CMD ["--help"]
