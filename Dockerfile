# docker build -t dhr-lightning .                                   # CPU
# docker build -t dhr-lightning --build-arg TORCH=cu126 .           # GPU; run with --gpus all
# docker run --rm -v "$PWD":/work --shm-size 2g dhr-lightning run --data my_photos --weights weights/FILE.safetensors
FROM python:3.11-slim

ARG TORCH=cpu
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/${TORCH}
COPY . /package
RUN pip install --no-cache-dir '/package[crf,heic,polygons,onnx]'
WORKDIR /work
ENTRYPOINT ["dhr-lightning"]
CMD ["--help"]
