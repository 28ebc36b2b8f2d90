# syntax=docker/dockerfile:1
# One image for every service of this project, from the same requirements.lock as the local environment. The packages
# are one layer that changes only with the lock; the project itself is a small layer on top. torch is the CUDA build: the
# same image runs the light tasks and the GPU worker, so a model is loaded by the code that trained it.

# What the project needs, apart from the rest of pyproject.toml: the packages' layer stays while this list does.
FROM python:3.11-slim-bookworm AS wanted
COPY pyproject.toml /
RUN python -c "import tomllib; print(*tomllib.load(open('/pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    >/requirements.txt

# At the lock's versions; its development tools stay out.
FROM python:3.11-slim-bookworm AS packages
WORKDIR /build
COPY --from=wanted /requirements.txt ./
COPY requirements.lock deploy/compose/install-packages.sh ./
RUN --mount=type=cache,target=/root/.cache sh install-packages.sh /opt/venv

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /build
COPY pyproject.toml requirements.lock README.md LICENSE ./
RUN pip install --no-cache-dir --constraint requirements.lock hatchling editables
COPY xray_pipeline ./xray_pipeline
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist .

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 xray \
 && useradd --uid 10001 --gid xray --home-dir /home/xray --create-home --shell /usr/sbin/nologin xray \
 && install -d -o xray -g xray -m 0750 /opt/airflow/logs /var/lib/xray /var/lib/xray/cache
COPY --from=packages /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/venv/bin/pip install --no-cache-dir --no-deps --no-index /dist/*.whl
COPY deploy/compose/airflow.cfg deploy/compose/webserver_config.py /opt/airflow/
COPY deploy/compose /opt/xray/compose
COPY scripts/phantom.py /opt/xray/compose/
COPY dags /opt/xray/dags
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AIRFLOW_HOME=/opt/airflow \
    XRAY_HOME=/var/lib/xray \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    DO_NOT_TRACK=true \
    GX_ANALYTICS_ENABLED=false
USER xray
WORKDIR /var/lib/xray
CMD ["xray", "--help"]
