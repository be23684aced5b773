FROM python:3.11-slim
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY featurestore featurestore
COPY streaming streaming
COPY validation validation
RUN pip install --no-cache-dir -c constraints.txt .
COPY feature_repo feature_repo
RUN useradd --create-home app && mkdir data && chown app data
USER app
CMD ["featurestore", "serve", "--repo", "feature_repo", "--host", "0.0.0.0"]
