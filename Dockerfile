# docker build -t cmmfnet .                               for a CPU
# docker build -t cmmfnet:cuda --build-arg TORCH=cu128 .  for NVIDIA GPUs: docker run --gpus all
# docker run -p 127.0.0.1:8000:8000 cmmfnet
#
# Any other command: docker run -v "$PWD:/data" -w /data --user "$(id -u)" cmmfnet colorize frames -o colour
FROM python:3.12-slim

ARG TORCH=cpu
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/${TORCH}

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY src src
RUN pip install --no-cache-dir '.[serve]'

# everything that the server writes is under /tmp
ENV HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
ENTRYPOINT ["cmmfnet"]
CMD ["serve", "--host", "0.0.0.0"]
