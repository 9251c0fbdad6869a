"""The service: `create_app()` gives a Flask application that scores images.

Owns the routes. What is slow or can fail is done before `create_app` returns: the model is
verified, warmed up and has given its golden answers, so that an application that exists can
score. Every error leaves as RFC 9457 problem details, with the request's id.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, g, request
from pydantic import BaseModel
from werkzeug.exceptions import HTTPException

from app import bodies, observe, openapi, problems
from app.images import ImageRefused
from app.problems import Problem
from app.schemas import Fault, ModelInfo, Scores, Status, Version
from app.scoring import Classifier, Tensor
from app.settings import Settings

SERVICE = "image-classifier"

_logger = logging.getLogger("app")


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application; without settings they are read from the environment.

    Raises `SettingsError` or `scoring.ModelUnfit`.
    """
    settings = settings or Settings.from_environ(os.environ)
    classifier = Classifier(settings.model_dir, digest=settings.model_digest, max_pixels=settings.max_pixels)
    model = ModelInfo(name=settings.model_name, version=settings.model_version, digest=classifier.digest)
    observe.BUILD.labels(settings.build, model.name, str(model.version)).set(1)

    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.url_map.merge_slashes = False
    app.extensions["stopping"] = lambda: False  # gunicorn.conf.py tells when its worker stops
    _observe_requests(app)
    _answer_errors_as_problems(app)
    _add_routes(app, settings=settings, classifier=classifier, model=model)
    return app


def _add_routes(app: Flask, *, settings: Settings, classifier: Classifier, model: ModelInfo) -> None:
    description = openapi.document(title=SERVICE, version=settings.build)

    @app.post("/score")
    def score() -> Response:
        uploads = bodies.read(request, max_images=settings.max_images)
        predictions = [classifier.predict(tensor) for tensor in _tensors(classifier, uploads)]
        observe.IMAGES.inc(len(predictions))
        return _json(Scores(model=model, build=settings.build, predictions=predictions))

    @app.get("/version")
    def version() -> Response:
        return _json(Version(service=SERVICE, build=settings.build, model=model, instance=str(os.getpid())))

    @app.get("/healthz")
    def healthz() -> Response:
        return _json(Status(status="alive"))

    @app.get("/readyz")
    def readyz() -> Response:
        stopping: Callable[[], bool] = app.extensions["stopping"]
        if stopping():
            raise problems.overloaded("this process is stopping")
        return _json(Status(status="ready"))

    @app.get("/openapi.json")
    def openapi_json() -> dict[str, Any]:
        return description

    @app.get("/")
    def index() -> Response:
        return Response("healthy", mimetype="text/plain")


def _tensors(classifier: Classifier, uploads: list[bodies.Upload]) -> list[Tensor]:
    """Decode every image before any is scored, so that one bad image costs no inference."""
    tensors, faults = [], []
    for upload in uploads:
        try:
            tensors.append(classifier.tensor(upload.data))
        except ImageRefused as error:
            faults.append(Fault(pointer=upload.pointer, detail=str(error)))
    if faults:
        raise Problem(422, faults[0].detail, errors=faults)
    return tensors


def _observe_requests(app: Flask) -> None:
    @app.before_request
    def begin() -> None:
        g.began = time.perf_counter()
        g.request_id = problems.request_id(request.headers.get("X-Request-Id"))
        g.note = ""

    @app.after_request
    def end(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        response.headers["Cache-Control"] = "no-store"
        observe.answered(
            route=request.url_rule.rule if request.url_rule else "other",
            method=request.method,
            path=request.path,
            status=response.status_code,
            seconds=time.perf_counter() - g.began,
            request_id=g.request_id,
            note=g.note,
        )
        return response


def _answer_errors_as_problems(app: Flask) -> None:
    @app.errorhandler(Problem)
    def known(problem: Problem) -> Response:
        g.note = problem.detail
        body = problems.document(problem, g.request_id)
        return Response(body, problem.status, problem.headers, content_type=problems.MEDIA_TYPE)

    @app.errorhandler(HTTPException)
    def flask_own(error: HTTPException) -> Response:
        allowed = getattr(error, "valid_methods", None)
        headers = {"Allow": ", ".join(allowed)} if allowed else {}
        return known(Problem(error.code or 500, error.description or "", headers=headers))

    @app.errorhandler(Exception)
    def unknown(error: Exception) -> Response:
        _logger.error("an error of ours", exc_info=error, extra={"facts": {"request_id": g.request_id}})
        return known(problems.our_mistake())


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), content_type="application/json")
