"""The service's description as an OpenAPI document, made from the pydantic models.

Owns what the document says about each route; the shapes are those of schemas.py, which the
answers are made from as well.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from app import bodies, problems
from app.schemas import ProblemDetails, ScoreInput, Scores, Status, Version

_MODELS = (ScoreInput, Scores, Version, Status, ProblemDetails)


def document(*, title: str, version: str) -> dict[str, Any]:
    """Return the OpenAPI document."""
    _, definitions = models_json_schema(
        [(model, "serialization") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": {
            "/score": {
                "post": {
                    "summary": "The three best labels of each image",
                    "requestBody": {"required": True, "content": _forms()},
                    "responses": _responses(Scores.__name__, 400, 408, 413, 415, 422, 503),
                }
            },
            "/version": {"get": {"summary": "Which build answers", "responses": _responses(Version.__name__)}},
            "/healthz": {"get": {"summary": "Is it alive", "responses": _responses(Status.__name__)}},
            "/readyz": {"get": {"summary": "Is it ready", "responses": _responses(Status.__name__, 503)}},
        },
        "components": {"schemas": definitions["$defs"]},
    }


def _forms() -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    texts = {"type": "array", "items": {"type": "string"}}
    return {
        "application/json": {"schema": {"anyOf": [_ref(ScoreInput.__name__), texts]}},
        "multipart/form-data": {"schema": {"type": "object", "additionalProperties": binary}},
        **{media_type: {"schema": binary} for media_type in bodies.IMAGE_TYPES},
    }


def _responses(schema: str, *refusals: int) -> dict[str, Any]:
    refused = {str(status): _response(status, ProblemDetails.__name__, problems.MEDIA_TYPE) for status in refusals}
    return {"200": _response(200, schema, "application/json"), **refused}


def _response(status: int, schema: str, media_type: str) -> dict[str, Any]:
    return {"description": HTTPStatus(status).phrase, "content": {media_type: {"schema": _ref(schema)}}}


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}
