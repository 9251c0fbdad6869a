"""The service's settings: read once from the environment, validated whole.

Owns names, defaults and limits. Knows nothing of Flask, gunicorn or the model. A wrong value
raises `SettingsError`, which names every wrong variable at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Port = Annotated[int, Field(ge=0, le=65_535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class SettingsError(Exception):
    """The environment does not say, or says wrongly, what the service needs."""


class Settings(BaseModel):
    """Each field is the environment variable of the same name in capitals, or of its alias."""

    model_config = ConfigDict(frozen=True, validate_by_name=True)

    host: str = "0.0.0.0"  # noqa: S104 - in a container the service must be reachable
    port: Port = 8080
    metrics_port: Port = Field(0, description="0 switches the metrics off.")

    model_dir: Path
    model_name: str = "unnamed"
    model_version: int = 0
    model_digest: str | None = Field(
        None, pattern=r"^sha256:[0-9a-f]{64}$", description="What MODEL_DIR must hold; unset trusts the folder."
    )
    build: str = Field("development", alias="SHIPWAY_BUILD", description="Told in every answer.")

    # Measured on 2 cores, a JPEG of 72 KB, 32 clients: one process with 2 threads
    # 193 requests/s, p99 176 ms, 221 MB; two with 1 thread 193/s, 288 ms, 230 MB, because kept-alive
    # connections spread unevenly; one with 4 threads 158/s, 272 ms. Threads beyond the cores only
    # wait for one another: they never wait for clients (worker.py).
    workers: Count = Field(1, description="Processes, which share one copy of the model.")
    threads: Count = Field(2, description="Requests scored at once by each process: as many as it may use cores.")
    queue: Count = Field(64, description="Whole requests that may wait for a thread; more are answered 503.")

    max_body_bytes: Count = 10_000_000
    max_buffer_bytes: Count = Field(64_000_000, description="Memory for requests arriving and waiting, a process.")
    max_images: Count = Field(16, description="Images in one request.")
    max_pixels: Count = Field(24_000_000, description="Pixels of one image, checked before it is decoded.")
    request_timeout_s: Seconds = Field(30, description="From a request's first byte to its last.")
    keepalive_s: Count = Field(75, description="More than the 60 s after which usual load balancers close first.")
    graceful_timeout_s: Count = Field(30, description="What SIGTERM leaves for requests that were accepted.")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings; an empty variable counts as unset. Raises `SettingsError`."""
        names = [field.alias or name.upper() for name, field in cls.model_fields.items()]
        given = {name: environ[name] for name in names if environ.get(name)}
        try:
            return cls.model_validate({_key(name): value for name, value in given.items()})
        except ValidationError as error:
            wrong = [f"{_variable(item['loc'])}: {item['msg']}" for item in error.errors()]
            raise SettingsError("\n".join(["the environment is wrong:", *wrong])) from error


def _key(variable: str) -> str:
    return variable if variable == "SHIPWAY_BUILD" else variable.lower()


def _variable(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location).upper()
