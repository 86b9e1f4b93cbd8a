# docker build -t sarm2 .                                              CPU
# docker build -t sarm2 --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 --build-arg EXTRA=gpu .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG EXTRA=cpu
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
# The same install lines that the Makefile and CI run: torch first and pinned, then the two distributions.
RUN python3 -m venv /opt/sarm2 \
 && /opt/sarm2/bin/python -m pip install --quiet --no-cache-dir -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY models models
COPY service service
RUN /opt/sarm2/bin/python -m pip install --quiet --no-cache-dir -c constraints.txt ./clients ".[${EXTRA}]"

FROM ${BASE}
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home sarm2
COPY --from=build /opt/sarm2 /opt/sarm2
ENV PATH=/opt/sarm2/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1
USER 10001
# In a container loopback reaches nobody; publishing the port is the operator's decision (see deploy/compose.yml).
ENV SARM2_HOST=0.0.0.0 SARM2_PORT=8765
EXPOSE 8765
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8765/readyz', timeout=2)"]
ENTRYPOINT ["sarm2"]
CMD ["serve"]
