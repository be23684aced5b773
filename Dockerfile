# The image's digest is not known where this file is written: `make image-digests` prints what the tags stand for now.
ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
# Every artefact with its hash, made by `make requirements.lock` for the platform of the image.
COPY requirements.lock ./
RUN python -m venv /opt/app && /opt/app/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY featurestore featurestore
COPY streaming streaming
COPY validation validation
RUN /opt/app/bin/pip install --no-cache-dir --no-deps .

FROM ${PYTHON_IMAGE}
# A fixed number, so that volumes keep their owner; no shell, no home.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin app && mkdir -p /app/data && chown app /app/data && chmod 0700 /app/data
COPY --from=build /opt/app /opt/app
WORKDIR /app
COPY feature_repo feature_repo
ENV PATH=/opt/app/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
CMD ["featurestore", "serve", "--repo", "feature_repo", "--host", "0.0.0.0"]
