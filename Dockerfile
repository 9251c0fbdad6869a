# Two uses. `docker build .` makes the whole image: the same /srv, and the same answers, as the
# image that `invoke image` composes from layers without Docker. `docker build --target base .`
# makes what those layers can stand on (`[image] base = "Dockerfile"`): Python, the user, nothing
# of ours. `[image] builder = "docker"` releases the whole.
#
# Needs no BuildKit. Packages without a wheel, and system libraries, belong into `base`.

ARG PYTHON=3.13
ARG PYTHON_IMAGE=python:${PYTHON}-slim-bookworm

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
# What differs from installer to installer stays out, and out of the wheels' lists of their files.
# So do the programs in bin/: they begin with this interpreter's path, and `python -m` starts the same.
WORKDIR /srv/site-packages
RUN rm -rf bin *.dist-info/INSTALLER *.dist-info/REQUESTED *.dist-info/direct_url.json \
 && for record in *.dist-info/RECORD; do \
      tr -d '\r' < $record \
      | grep -vE '^(\.\./|bin/|[^/]*\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json),)' \
      | LC_ALL=C sort -t , -k 1,1 > /tmp/record \
      && echo "$record,," >> /tmp/record \
      && cp /tmp/record $record || exit 1; \
    done


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
