"""The nightly CronJob: its image built as docs/ci.md says, and its pod deploying with the rights of k8s/setup alone."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import adder as adders
from tests.cluster import releaser
from tests.cluster.adder import Adder
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import fresh
from tests.docker import machine, tools
from tests.docker.registries import PASSWORD, USER
from tests.system.project import ROOT, free_port

FOLDER = ROOT / "k8s" / "nightly"
_JOB_S = 240


@dataclass(frozen=True, kw_only=True)
class Night:
    """A project that was built and never deployed, and the CronJob beside it."""

    adder: Adder
    built: str

    def passes(self, job: str) -> str:
        """Run the job now, to its good end; return what its container said."""
        cluster, where = self.adder.cluster, ("--namespace", self.adder.namespace)
        cluster.kubectl("create", "job", job, "--from=cronjob/nightly", *where)
        cluster.await_(f"job/{job}", "jsonpath={.status.conditions}", namespace=self.adder.namespace, timeout_s=_JOB_S)
        said = cluster.tried("logs", f"job/{job}", "--all-containers", *where).stdout
        status = cluster.get("job", job, *where)["status"]
        assert status.get("succeeded") == 1, f"{status}\n{said}{cluster.kubectl('get', 'events', *where)}"
        return said


@pytest.fixture(scope="module")
def night(cluster: Cluster, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    for namespace in fresh(cluster, __file__):
        releaser.set_up(cluster, namespace)
        made = adders.adder(cluster, namespace, folder)
        made.restricted()
        project = made.project
        shutil.copytree(folder / "store", project.root / "store")
        shutil.copyfile(cluster.mine.authority, project.root / "authority.pem")
        project.change("release.toml", f'store = "{folder}/store"', 'store = "store"')
        project.write("release.toml", (project.root / "release.toml").read_text("utf-8") + "[env.night.service]\n")
        made.touched("older")
        project.invoke("build", "--env", "night")
        made.touched("newer")
        built = project.facts("build", "--env", "night")["digest"]
        made.touched("not built")
        with served_by_git(project.root, cluster.mine.host) as repository:
            cronjob = folder / "nightly"
            shutil.copytree(FOLDER, cronjob)
            write_kustomization(cronjob / "kustomization.yaml", made, image=image, repository=repository)
            login = (f"--from-literal=REGISTRY_USER={USER}", f"--from-literal=REGISTRY_PASSWORD={PASSWORD}")
            cluster.kubectl("create", "secret", "generic", "registry", *login, "--namespace", namespace)
            cluster.kubectl("apply", f"--kustomize={cronjob}")
            yield Night(adder=made, built=built)


@pytest.fixture(scope="module")
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the image as docs/ci.md says it, kubectl being ours, and return its name in the cluster's registry."""
    folder, name = tmp_path_factory.mktemp("image"), f"{cluster.registry}/shipway-nightly:1"
    program = cluster.mine.kubernetes / "kubectl"
    version = json.loads(cluster.kubectl("version", "--client", "--output=json"))["clientVersion"]["gitVersion"]
    (place := folder / "release" / version / "bin/linux/amd64").mkdir(parents=True)
    (place / "kubectl").symlink_to(program)
    with machine.daemon() as docker, served_by_http(folder) as mirror:
        arguments = {
            "KUBECTL": version.removeprefix("v"),
            "KUBECTL_SHA256": hashlib.sha256(program.read_bytes()).hexdigest(),
            "KUBECTL_MIRROR": mirror,
            "PYTHON_IMAGE": machine.python_image("3.13", docker.client, "git"),
        }
        said = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        where = ("--network=host", f"--file={FOLDER}/Dockerfile", f"--tag={name}")
        docker.cli("build", "--quiet", *where, *said, ROOT, buildkit=True)
        docker.cli("save", "--output", folder / "image.tar", name)
        docker.cli("rmi", name)
    environ = {**os.environ, **cluster.environ}
    subprocess.run([tools.crane(), "push", folder / "image.tar", name], env=environ, check=True, capture_output=True)
    (folder / "image.tar").unlink()
    return name


def write_kustomization(file: Path, adder: Adder, *, image: str, repository: str) -> None:
    """Say in k8s/nightly what a user says there."""
    wanted = {
        "namespace: image-classifier": f"namespace: {adder.namespace}",
        "newName: example.azurecr.io/shipway-nightly": f"newName: {image.rpartition(':')[0]}",
        "REPOSITORY=https://git.example/team/image-classifier.git": f"REPOSITORY={repository}",
        "ENVIRONMENT=aks": "ENVIRONMENT=night",
        "SHIPWAY_PUSH_AZURE_CREDENTIAL=workload_identity": "SHIPWAY_PUSH_LOGIN=environment",
        "SHIPWAY_MODEL_AZURE_CREDENTIAL=workload_identity": "SHIPWAY_PUSH_AUTHORITY=authority.pem",
    }
    text = file.read_text("utf-8")
    for old, new in wanted.items():
        assert old in text
        text = text.replace(old, new)
    settings = {name: value for name, value in adder.project.environ.items() if name.startswith("SHIPWAY_")}
    ours = "".join(f"      - {name}={value}\n" for name, value in settings.items() if f"- {name}=" not in text)
    text = text.replace("  - name: nightly-kubeconfig\n", f"{ours}  - name: nightly-kubeconfig\n")
    at = "/spec/jobTemplate/spec/template/spec/containers/0/envFrom/-"
    patch = [{"op": "add", "path": at, "value": {"secretRef": {"name": "registry"}}}]
    file.write_text(f"{text}patches: {json.dumps([{'target': {'kind': 'CronJob'}, 'patch': json.dumps(patch)}])}\n")


@contextlib.contextmanager
def served_by_git(root: Path, host: str) -> Iterator[str]:
    """Let pods clone a repository, for as long as the block lasts."""
    port = free_port()
    words = ("--export-all", f"--base-path={root.parent}", f"--listen={host}", f"--port={port}", "--reuseaddr")
    subprocess.run(["git", "config", "uploadpack.allowFilter", "true"], cwd=root, check=True)
    branch = subprocess.run(["git", "branch", "-M", "main"], cwd=root, check=True)
    assert branch.returncode == 0
    with subprocess.Popen(["git", "daemon", *words], start_new_session=True) as daemon:
        try:
            yield f"git://{host}:{port}/{root.name}"
        finally:
            os.killpg(daemon.pid, 15)


@contextlib.contextmanager
def served_by_http(folder: Path) -> Iterator[str]:
    """Serve a folder to this machine, for as long as the block lasts."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_nightly_is_accepted_without_a_warning_of_pod_security(cluster: Cluster, namespace: str) -> None:
    for mode in ("enforce", "warn"):
        cluster.kubectl("label", "namespace", namespace, f"pod-security.kubernetes.io/{mode}=restricted")
    rendered = cluster.kubectl("kustomize", str(FOLDER))
    assert "namespace: image-classifier" in rendered

    ours = rendered.replace("namespace: image-classifier", f"namespace: {namespace}")
    done = cluster.tried("apply", "--dry-run=server", "--output=json", "--filename=-", stdin=ours)

    assert (done.returncode, done.stderr) == (0, "")
    kinds = sorted(each["kind"] for each in json.loads(done.stdout)["items"])
    assert kinds == ["ConfigMap", "ConfigMap", "CronJob"]


def test_nightly_job_deploys_the_newest_tested_image_and_then_finds_nothing_to_do(night: Night) -> None:
    first = night.passes("first")
    serving = night.adder.project.facts("status", "--env", "night")
    second = night.passes("second")

    assert serving["digest"] == night.built, first
    assert "1 commit" in first
    assert serving["healthy"]
    assert "nothing" in second
    records = [(each["kind"], each["outcome"]) for each in night.adder.project.facts("history", "--env", "night")]
    assert records == [("deploy", "unchanged"), ("deploy", "released")]
