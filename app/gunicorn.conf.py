# ruff: noqa: N999 - the name that gunicorn itself looks for
"""gunicorn's configuration: one process that loads the model, then forks workers from it.

Run from the folder above, as `python -m gunicorn --config app/gunicorn.conf.py 'app:create_app()'`.
Everything that differs between machines comes from the environment (see settings.py). The
metrics have a port of their own, served by the master for all workers.
"""

import atexit
import os
import shutil
import sys
import tempfile

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

# A folder in memory where there is one: it also works under a read-only root file system.
_memory = "/dev/shm"  # noqa: S108 - the folder's owner and mode are mkdtemp's
_folder = _memory if os.access(_memory, os.W_OK) else tempfile.gettempdir()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="metrics-", dir=_folder)

# After the line above: prometheus_client decides when it is imported.
import prometheus_client  # noqa: E402
from prometheus_client import multiprocess  # noqa: E402

from app.observe import log_config  # noqa: E402
from app.settings import Settings, SettingsError  # noqa: E402

try:
    _settings = Settings.from_environ(os.environ)
except SettingsError as error:
    sys.exit(str(error))

bind = f"{_settings.host}:{_settings.port}"
worker_class = "app.worker.BufferingWorker"
workers = _settings.workers
threads = _settings.threads
preload_app = True  # the model is loaded once; forked workers share its memory
keepalive = _settings.keepalive_s
graceful_timeout = _settings.graceful_timeout_s
worker_tmp_dir = _folder
control_socket_disable = True  # it would be written to the home folder
logconfig_dict = log_config()


def on_starting(server: Arbiter) -> None:
    """Serve the metrics, before workers are forked."""
    if not _settings.metrics_port:
        return
    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    try:
        prometheus_client.start_http_server(_settings.metrics_port, addr=_settings.host, registry=registry)
    except OSError as error:
        sys.exit(f"METRICS_PORT {_settings.metrics_port} cannot be listened on: {error.strerror}")
    server.log.info("metrics on port %d", _settings.metrics_port)


def post_worker_init(worker: Worker) -> None:
    """Let /readyz know when its worker is told to stop."""
    worker.wsgi.extensions["stopping"] = lambda: not worker.alive


def child_exit(_server: Arbiter, worker: Worker) -> None:
    """Forget the gauges of a worker that ended."""
    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


@atexit.register
def _leave_nothing_behind(master: int = os.getpid()) -> None:
    """Remove the metrics, also when gunicorn cannot start; forked workers inherit this call."""
    if os.getpid() == master:
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
