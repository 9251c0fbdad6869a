"""Other people's programs that make a cluster: Kubernetes and CoreDNS, built once, and what Debian has.

Both are built from their Go modules at pinned versions, in one go since they share most of
what they are made of, five minutes on two cores, into the tests' cache; nothing is downloaded
but modules. Of CoreDNS' plugins it has those alone that a cluster's `Corefile` names. 1.34 is
the newest Kubernetes that takes cgroup v1 without asking. What is missing on this machine is
a skip that says how to get it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from shipway.oci.staging import locked
from tests.docker import tools
from tests.docker.tools import PLACE

VERSION = "1.34.4"
_COREDNS = "1.12.4"
_COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
_DNS_PLUGINS = ("bind", "errors", "hosts", "template", "kubernetes")  # in the order that they are asked in
_OURS = ("coredns", "pause")
_BUILD_S = 1800
_NOT_INLINED = f"{tools.GO_FLAGS[0]} -l"  # a sixth less to compile, for programs that mostly wait
# Each program, and the package of Debian that has it.
_PACKAGED = {
    "etcd": "etcd-server",
    "docker-registry": "docker-registry",
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "sysctl": "procps",
    "nsenter": "util-linux",
    "mmdebstrap": "mmdebstrap",
}
PLUGINS = Path("/usr/lib/cni")  # of containernetworking-plugins
_PAUSE = """package main

import ("os"; "os/signal"; "syscall")

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Where the programs are that were built; those of Debian are on the path."""

    kubernetes: Path
    coredns: Path
    pause: Path

    @property
    def kubectl(self) -> Path:
        """The one of the cluster's own version."""
        return self.kubernetes / "kubectl"


def programs() -> Programs:
    """Return all programs, built unless they are; raises pytest's skip."""
    lacking = sorted(package for name, package in _PACKAGED.items() if not shutil.which(name))
    if not (PLUGINS / "ptp").exists():
        lacking.append("containernetworking-plugins")
    if lacking:
        pytest.skip(f"the cluster's parts are not here: apt-get install {' '.join(lacking)}")
    alone = ["unshare", "--mount", "--pid", "--net", "--uts", "--fork", "--mount-proc", "true"]
    if os.geteuid() != 0 or subprocess.run(alone, capture_output=True, check=False).returncode != 0:
        pytest.skip("a cluster makes namespaces and cgroups: that is for root, and in a container wants --privileged")
    folder = _built()
    return Programs(kubernetes=folder, coredns=folder / "coredns", pause=folder / "pause")


def _built() -> Path:
    ours = hashlib.sha256((_dns() + _PAUSE + _NOT_INLINED).encode()).hexdigest()[:12]
    folder = PLACE / "bin" / f"kubernetes-{VERSION}-coredns-{_COREDNS}-{ours}"
    PLACE.mkdir(parents=True, exist_ok=True)
    with locked(PLACE / "kubernetes.lock"):
        if not all((folder / name).exists() for name in (*_COMMANDS, *_OURS)):
            print(f"building Kubernetes {VERSION} and CoreDNS: five minutes, once", file=sys.stderr)  # noqa: T201 - people wait
            with tempfile.TemporaryDirectory(dir=PLACE) as scratch:
                _build(Path(scratch))
                fresh = Path(scratch) / "bin"
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.mkdir(exist_ok=True)
                fresh.rename(folder)
    return folder


def _build(scratch: Path) -> None:
    found = json.loads(_go(scratch, "mod", "download", "-json", f"k8s.io/kubernetes@v{VERSION}"))
    (scratch / "go.mod").write_text(_module(Path(found["GoMod"]).read_text("utf-8")), "utf-8")
    packages = [f"k8s.io/kubernetes/cmd/{name}" for name in _COMMANDS]
    imports = "".join(f'\t_ "{package}"\n' for package in packages)
    (scratch / "tools.go").write_text(f"//go:build tools\n\npackage cluster\n\nimport (\n{imports})\n", "utf-8")
    for name, text in zip(_OURS, (_dns(), _PAUSE), strict=True):
        (scratch / name).mkdir()
        (scratch / name / "main.go").write_text(text, "utf-8")
    _go(scratch, "mod", "tidy")
    major, minor, _ = VERSION.split(".")
    named = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor}
    said = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in named.items())
    ours = [f"./{name}" for name in _OURS]
    _go(scratch, "build", _NOT_INLINED, f"-ldflags=-s {said}", "-o", f"{scratch}/bin/", *packages, *ours)


def _dns() -> str:
    """Return CoreDNS' program as its documentation has it, with these plugins."""
    imports = "".join(f'\t_ "github.com/coredns/coredns/plugin/{name}"\n' for name in _DNS_PLUGINS)
    names = ", ".join(f'"{name}"' for name in _DNS_PLUGINS)
    return f"""package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
{imports})

func main() {{
	dnsserver.Directives = []string{{{names}}}
	coremain.Run()
}}
"""


def _module(upstream: str) -> str:
    """Return a module that uses Kubernetes; it must name the staging modules' versions, which upstream has as paths."""
    go = re.search(r"^go .*$", upstream, re.MULTILINE)
    assert go, "go.mod without a Go version"
    staging = sorted(set(re.findall(r"(\S+) => \./staging/", upstream)))
    replaced = "".join(f"\t{name} => {name} v0.{VERSION.partition('.')[2]}\n" for name in staging)
    required = f"\tk8s.io/kubernetes v{VERSION}\n\tgithub.com/coredns/coredns v{_COREDNS}\n"
    return f"module cluster\n\n{go[0]}\n\nrequire (\n{required})\n\nreplace (\n{replaced})\n"


def _go(folder: Path, *words: str) -> str:
    environ = {**os.environ, **tools.GO_ENVIRON, "GOFLAGS": "-mod=mod", "GOWORK": "off"}
    program = tools.go(f"Kubernetes {VERSION}")
    done = subprocess.run(
        [program, *words], cwd=folder, env=environ, capture_output=True, timeout=_BUILD_S, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"go {' '.join(words[:2])} failed: {done.stderr.decode()[-600:]}")
    return done.stdout.decode()
