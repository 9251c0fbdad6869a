"""What the service takes and answers, as pydantic models; `/openapi.json` is made from them.

Owns the shapes on the wire. Knows nothing of Flask, images or the model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class ScoreInput(BaseModel):
    """Images as JSON: a list, or the same list written as JSON into a string."""

    input: list[str] | str = Field(description="Base64, or `data:` URLs, of PNG or JPEG images.")


class Label(BaseModel):
    """One of the model's classes and how probable it is."""

    label: str
    index: int = Field(description="The line of the model's labels.txt, from 0.")
    probability: float = Field(ge=0, le=1)


class Prediction(BaseModel):
    """What one image shows: the three most probable labels, best first."""

    labels: list[Label]


class ModelInfo(BaseModel):
    """Which model answers."""

    name: str
    version: int
    digest: str = Field(description="SHA-256 over the sorted checksums of the model's files.")


class Scores(BaseModel):
    """A prediction for each image, in the order of the request."""

    model: ModelInfo
    build: str
    predictions: list[Prediction]


class Version(BaseModel):
    """Which build answers."""

    service: str
    build: str
    model: ModelInfo
    instance: str = Field(description="The process that answers.")


class Status(BaseModel):
    """The answer of a probe."""

    status: Literal["alive", "ready"]


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    pointer: str = Field(description="JSON pointer (RFC 6901); an image's position for bodies that are not JSON.")
    detail: str


class ProblemDetails(BaseModel):
    """Why there is no answer (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str
    instance: str = Field(description="The request's id, as in X-Request-Id and in the log.")
    errors: list[Fault] = []
