"""A real Kubernetes of two nodes on this machine: up in seconds, and gone without a trace.

`up` starts a keeper, a process that holds the cluster's lock, writes what the cluster needs
into one folder, and starts its first process. That one dies with the keeper, by the kernel's
hand, and with it all processes, mounts and networks; what then is left (cgroups, lines in the
hosts file, the folder) the keeper removes, or the next `up` or `down` where it was killed.
Several clusters stand beside one another under different names.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shipway.artifacts import Descriptor, Digest
from shipway.config import PushSettings
from shipway.console import Console
from shipway.oci.compose import CONFIG, MANIFEST, TAR, blob_entry, canonical
from shipway.oci.images import Images, described
from shipway.oci.registry import open_repository
from shipway.oci.staging import locked
from shipway.proc import Proc
from shipway.tarball import Entry, collect
from tests.cluster import cgroups, cloud
from tests.cluster.api import Api
from tests.cluster.cluster import Cluster, own
from tests.cluster.plan import NODES, SLOTS, USERS, Plan, document
from tests.cluster.programs import Programs, programs
from tests.docker import machine
from tests.docker.authority import Authority
from tests.docker.registries import HTPASSWD, PASSWORD, USER, configured, known
from tests.docker.tools import PLACE

HOME = PLACE / "clusters"
ROOT = Path(__file__).parents[2]
PYTHON = "3.13"
_READY_S, _DOWN_S = 120.0, 60.0
T = TypeVar("T")


class ClusterError(Exception):
    """The cluster is not as it should be; the message says what to do."""


# -- for people, and for a run of tests -------------------------------------------------------


def up(name: str) -> Cluster:
    """Start a cluster that stays until `down`; raises `ClusterError` when it is there already."""
    if there := find(name):
        raise ClusterError(f"the cluster {name!r} is up: KUBECONFIG={there.kubeconfig}; end it first, or name another")
    process = _keeper(name, subprocess.DEVNULL)
    process.returncode = 0  # not ours to wait for: `down` ends it
    return own(Plan.read(HOME / name))


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Give a cluster that ends with the block, or with this process, however that ends."""
    HOME.mkdir(parents=True, exist_ok=True)
    with locked(HOME / "turn.lock"):  # two runs that begin at once are not to choose the same name
        name = next(name for name in (f"run-{number}" for number in SLOTS) if not _taken(name))
        process = _keeper(name, subprocess.PIPE)
    assert process.stdin
    try:
        yield own(Plan.read(HOME / name))
    finally:
        process.stdin.close()
        process.wait(_DOWN_S)


def down(name: str) -> bool:
    """End a cluster and remove what is left of it; false when there was none."""
    folder = HOME / name
    try:
        with _held(name):
            there = folder.exists()
            _remove(name)
            return there
    except BlockingIOError:
        pid = int((folder / "keeper").read_text("ascii"))
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
        until = time.monotonic() + _DOWN_S
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError), _held(name):
                _remove(name)
                return True
            time.sleep(0.1)
    raise ClusterError(f"process {pid}, which keeps the cluster {name!r}, does not end")


def find(name: str) -> Cluster | None:
    """Return a cluster that runs."""
    return own(Plan.read(HOME / name)) if _taken(name) and (HOME / name / "base").exists() else None


def names() -> list[str]:
    """Return the names of all clusters, those too of which only something is left."""
    return sorted(file.parent.name for file in HOME.glob("*/keeper"))


def _keeper(name: str, stdin: int) -> subprocess.Popen[bytes]:
    """Start the keeper and wait until the cluster is ready."""
    built = programs()  # here, since it may take minutes, and may be a skip
    machine.prepared(PYTHON)
    HOME.mkdir(parents=True, exist_ok=True)
    log = HOME / f"{name}.log"
    argv = [sys.executable, "-m", "tests.cluster.keeper", name, str(built.pause)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, cwd=ROOT, stdin=stdin, stdout=subprocess.PIPE, stderr=output, start_new_session=True
        )
    assert process.stdout
    with process.stdout:
        said = process.stdout.readline()
    if said != b"ready\n":
        if process.stdin:
            process.stdin.close()
        process.wait()
        raise ClusterError(f"the cluster {name!r} did not start:\n{log.read_text('utf-8', 'replace')[-3000:]}")
    return process


def _taken(name: str) -> bool:
    try:
        with _held(name):
            return False
    except BlockingIOError:
        return True


@contextlib.contextmanager
def _held(name: str) -> Iterator[None]:
    HOME.mkdir(parents=True, exist_ok=True)
    with locked(HOME / f"{name}.lock", wait=False):
        yield


# -- the keeper -------------------------------------------------------------------------------


def keep(name: str, pause: Path) -> None:
    """Hold a cluster until its stdin ends, where that is a pipe, or until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_held(name))
        except BlockingIOError:
            sys.exit(
                f"it is there already: KUBECONFIG={HOME / name}/pki/admin.conf; take another name, or end it first"
            )
        _remove(name)
        stack.callback(_remove, name)
        plan = _prepared(name, _slot(stack), programs())
        first = _first(plan)
        try:
            base = _until(partial(_filled, plan, pause), first, plan)
            _await_ready(plan, first)
            (plan.folder / "base").write_text(base, "utf-8")
            sys.stdout.write("ready\n")
            sys.stdout.close()
            _stay(first)
        finally:
            first.kill()
            first.wait()


def _slot(stack: contextlib.ExitStack) -> int:
    taken = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
    for slot in SLOTS:
        with contextlib.suppress(BlockingIOError):
            if f" 172.31.{214 + slot}." not in taken:
                stack.enter_context(locked(HOME / f"slot-{slot}.lock", wait=False))
                return slot
    raise ClusterError("all addresses for clusters are taken: ip address")


def _prepared(name: str, slot: int, built: Programs) -> Plan:
    """Write all that the cluster reads."""
    folder = HOME / name
    plan = Plan(name=name, slot=slot, folder=folder, kubernetes=built.kubernetes, coredns=built.coredns)
    (folder / "log").mkdir(parents=True)
    (folder / "keeper").write_text(str(os.getpid()), "ascii")
    plan.write()
    authority = Authority(folder / "pki")
    authority.issue("kube-apiserver", plan.control, "10.96.0.1", "kubernetes.default.svc")
    authority.issue("service-account")
    authority.issue("registry", plan.control)
    for user, group in USERS.items():
        authority.issue_user(user, group)
        plan.config(user).write_text(document(plan.kubeconfig_of(user)), "utf-8")
    passwords = folder / "htpasswd"
    passwords.write_text(HTPASSWD, "ascii")
    registry = configured(
        folder / "storage",
        address=plan.registry,
        auth={"htpasswd": {"realm": "a test's own", "path": str(passwords)}},
        tls=plan.issued("registry"),
    )
    known(folder, plan.registry)
    files = {
        "registry.yml": document(registry),
        "Corefile": plan.corefile(),
        "resolv.conf": f"nameserver {plan.control}\n",
        "names": "",
        "trusted.pem": Path(machine.host_authorities()).read_text("utf-8") + authority.pem.read_text("utf-8"),
        f"certs.d/{plan.registry}/hosts.toml": plan.hosts_toml(),
    }
    for node in NODES:
        issued = authority.issue(node, plan.node(node))
        assert issued == plan.issued(node)
        files |= {
            f"{node}/kubelet.json": document(plan.kubelet(node)),
            f"{node}/containerd.toml": plan.containerd(node),
            f"{node}/cni/10-pods.conflist": document(plan.network(node)),
        }
        for mounted in ("lib", "log"):
            (folder / node / mounted).mkdir(parents=True)
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, "utf-8")
    return plan


def _first(plan: Plan) -> subprocess.Popen[bytes]:
    """Start the cluster's first process: the kernel kills it when this one ends, and then all that it started."""
    for node in NODES:
        cgroups.make(plan.context, node)
    argv = [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *(sys.executable, "-m", "tests.cluster.inside", "machine", str(plan.folder)),
    ]
    with (plan.folder / "log" / "first.log").open("wb") as log:
        return subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _await_ready(plan: Plan, first: subprocess.Popen[bytes]) -> None:
    api = Api(plan.control, authority=plan.authority, issued=plan.issued("admin"))
    _until(partial(_ready, api), first, plan)


def _ready(api: Api) -> bool:
    """Tell whether both nodes are ready, and pods can be made."""
    nodes = api.get("/api/v1/nodes")["items"]
    ready = [_condition(node) for node in nodes]
    api.get("/api/v1/namespaces/default/serviceaccounts/default")
    return ready == ["True"] * len(NODES)


def _condition(node: Mapping[str, Any]) -> str:
    return next((str(each["status"]) for each in node["status"].get("conditions", []) if each["type"] == "Ready"), "")


def _until(asked: Callable[[], T], first: subprocess.Popen[bytes], plan: Plan) -> T:
    """Ask until the answer is true; errors are answers too, and the last one is told."""
    until, last = time.monotonic() + _READY_S, ""
    while time.monotonic() < until and first.poll() is None:
        try:
            if answer := asked():
                return answer
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what people need to know
            last = f"{type(error).__name__}: {error}"
        time.sleep(0.1)
    logs = "\n".join(f"== {file.name}\n{file.read_text('utf-8', 'replace')[-600:]}" for file in _logs(plan))
    raise ClusterError(f"not ready after {_READY_S:.0f} s ({last})\n{logs}")


def _logs(plan: Plan) -> list[Path]:
    return [*plan.folder.glob("log/*.log"), *(file for node in NODES for file in plan.folder.glob(f"{node}/*.log"))]


def _stay(first: subprocess.Popen[bytes]) -> None:
    while first.poll() is None:
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            os.read(0, 1)
            return
        time.sleep(0.2)
    raise ClusterError("the cluster's first process has ended")


# -- its images -------------------------------------------------------------------------------


def _filled(plan: Plan, pause: Path) -> str:
    """Push what every pod needs, and the base for images; return the base's reference."""
    with _opened(plan, "pause") as images:
        _push_pause(images, pause)
    with _opened(plan, "python") as images:
        digest = machine.base(PYTHON, images)
    return f"{plan.registry}/python@{digest}"


@contextlib.contextmanager
def _opened(plan: Plan, name: str) -> Iterator[Images]:
    place = f"{plan.registry}/{name}"
    images = open_repository(
        place,
        settings=PushSettings(repository=place, authority=str(plan.authority)),
        root=Path(),
        environ={"REGISTRY_USER": USER, "REGISTRY_PASSWORD": PASSWORD},
        proc=Proc(),
        tell=Console(err=io.StringIO()),
    )
    with contextlib.closing(images):
        yield images


def _push_pause(images: Images, program: Path) -> None:
    data = program.read_bytes()
    tar = collect([Entry(path="pause", size_bytes=len(data), read=lambda: [data], executable=True)])
    layer = Descriptor(media_type=TAR, digest=Digest.of(tar), size_bytes=len(tar))
    config = canonical(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        }
    )
    images.add(layer, lambda: [tar])
    images.add(described(config, CONFIG), lambda: [config])
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob_entry(described(config, CONFIG)),
            "layers": [blob_entry(layer)],
        }
    )
    images.tag("1", manifest, MANIFEST)


# -- what is left -----------------------------------------------------------------------------


def _remove(name: str) -> None:
    """Remove what the kernel does not: the cluster's processes have ended, or are just ending."""
    folder = HOME / name
    context = f"shipway-tests-{name}"
    with contextlib.suppress(OSError, ValueError):
        interface = Plan.read(folder).interface
        subprocess.run(["ip", "link", "delete", interface], capture_output=True, check=False)
    cgroups.remove(context)
    cloud.write_hosts(context, [])
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        keep(sys.argv[1], Path(sys.argv[2]))
    except ClusterError as failed:
        sys.exit(str(failed))
