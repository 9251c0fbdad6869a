# Two uses. `docker build .` makes the whole image: the same /srv, and the same answers, as the
# image that `invoke image` composes from layers without Docker. `docker build --target base .`
# makes what those layers can stand on: Python, the user, nothing of ours.
#
# Needs no BuildKit. Packages without a wheel, and system libraries, belong into `base`.

ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
RUN groupadd --gid 65532 service \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /srv --shell /usr/sbin/nologin service
WORKDIR /srv
USER 65532:65532


FROM base AS dependencies
USER 0
COPY app/requirements.txt /tmp/requirements.txt
RUN python -m pip install --no-cache-dir --no-compile --require-hashes --only-binary :all: \
    --target /srv/site-packages --requirement /tmp/requirements.txt


FROM base AS model
# The version that a plain `docker build` takes. The digest is the manifest's; the service refuses
# to start on any other folder. A test keeps both in step with the store.
ARG MODEL_NAME=efficientnet-lite0
ARG MODEL_VERSION=1
ARG MODEL_HEX=8971030cf3e77d0d4d61c6baf843ba7428e9fb496b4efb7eadd2bc346b1aa35f
USER 0
COPY model/assemble.py /tmp/assemble.py
COPY model/store /tmp/store
RUN python /tmp/assemble.py /tmp/store ${MODEL_NAME} ${MODEL_VERSION} /srv/models/${MODEL_HEX}


FROM base
ARG MODEL_NAME=efficientnet-lite0
ARG MODEL_VERSION=1
ARG MODEL_HEX=8971030cf3e77d0d4d61c6baf843ba7428e9fb496b4efb7eadd2bc346b1aa35f
ARG BUILD=docker
COPY --from=dependencies /srv/site-packages /srv/site-packages
COPY --from=model /srv/models /srv/models
COPY app /srv/app
ENV PYTHONPATH=/srv/site-packages:/srv \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PORT=8080 \
    METRICS_PORT=9090 \
    MODEL_DIR=/srv/models/${MODEL_HEX} \
    MODEL_NAME=${MODEL_NAME} \
    MODEL_VERSION=${MODEL_VERSION} \
    MODEL_DIGEST=sha256:${MODEL_HEX} \
    SHIPWAY_BUILD=${BUILD}
EXPOSE 8080 9090
CMD ["python", "-m", "gunicorn", "--config", "app/gunicorn.conf.py", "app:create_app()"]
