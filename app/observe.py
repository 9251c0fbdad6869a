"""What the service tells about itself: log lines of JSON, and metrics.

Owns the shape of a log line and the names of the metrics. Neither ever holds a body, a query
or a header other than the request id. In several processes the metrics need
PROMETHEUS_MULTIPROC_DIR before this module is imported; gunicorn.conf.py sees to it.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("http_requests", "Answers, by route and status.", ["route", "status"])
SECONDS = Histogram("http_request_seconds", "Time in the application, by route.", ["route"])
IMAGES = Counter("scored_images", "Images that were scored.")
BUILD = Gauge("service_build", "1 for the build that runs.", ["build", "model", "version"], multiprocess_mode="max")

# Routes that say nothing of users: never queued behind scoring, logged only when they fail.
PROBES = frozenset({"/", "/healthz", "/readyz", "/version"})

_logger = logging.getLogger("app")


def answered(*, route: str, method: str, path: str, status: int, seconds: float, request_id: str, note: str) -> None:
    """Log and count one answer; `note` says why it is an error, if it is one."""
    REQUESTS.labels(route, str(status)).inc()
    SECONDS.labels(route).observe(seconds)
    facts = {"method": method, "path": path, "status": status, "ms": round(seconds * 1000, 1)}
    level = logging.DEBUG if route in PROBES and status == 200 else logging.INFO  # noqa: PLR2004 - HTTP's own number
    _logger.log(level, note or "answered", extra={"facts": facts | {"request_id": request_id}})


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record, ours and gunicorn's."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; `facts` given as `extra` become fields of it."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_config(level: str = "INFO") -> dict[str, Any]:
    """Return the logging configuration: everything as JSON on stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {"gunicorn.error": {"level": level, "propagate": True, "handlers": []}},
    }
