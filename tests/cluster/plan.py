"""The plan of a cluster: its names, addresses, commands and configuration, all pure.

A cluster lives in namespaces of its own. The control plane has one network, in which a bridge
joins the host's end (`.1`), itself (`.2`) and the nodes; each node is a network, a mount and a
PID namespace. The addresses from `.128` on are the load balancer's. Nothing of this is visible
to the machine but one interface, and that ends with the cluster's first process.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.cluster.programs import PLUGINS
from tests.docker.authority import Issued
from tests.docker.registries import PASSWORD, USER

SLOTS = range(8)
CONTROL = "control"
NODES = ("node1", "node2")
PODS, SERVICES, DNS = "10.244.0.0/16", "10.96.0.0/16", "10.96.0.10"
USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "system:kube-controller-manager",
    "system:kube-scheduler": "system:kube-scheduler",
    "system:kube-proxy": "system:kube-proxy",
    "kubelet-client": "system:masters",
    **{f"system:node:{node}": "system:nodes" for node in NODES},
}
_DEAD_S, _TOLERATED_S = 8, 5  # a node that says nothing, and then its pods


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One cluster: `slot` tells it from others on this machine, `folder` has all that it writes."""

    name: str
    slot: int
    folder: Path
    kubernetes: Path
    coredns: Path

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Return the plan that was written into its folder."""
        said = json.loads((folder / "plan.json").read_bytes())
        return cls(
            name=said["name"],
            slot=said["slot"],
            folder=folder,
            kubernetes=Path(said["kubernetes"]),
            coredns=Path(said["coredns"]),
        )

    def write(self) -> None:
        """Write it into its folder."""
        said = {
            "name": self.name,
            "slot": self.slot,
            "kubernetes": str(self.kubernetes),
            "coredns": str(self.coredns),
        }
        (self.folder / "plan.json").write_text(json.dumps(said), "utf-8")

    # -- names and addresses -----------------------------------------------------------------

    @cached_property
    def net(self) -> str:
        """The first three numbers of all addresses that the machine sees."""
        return f"172.31.{214 + self.slot}"

    @property
    def host(self) -> str:
        """The machine's own address, as the cluster sees it."""
        return f"{self.net}.1"

    @property
    def control(self) -> str:
        """Where the API server, the registry and the name service are."""
        return f"{self.net}.2"

    def node(self, name: str) -> str:
        """Return a node's address."""
        return f"{self.net}.{3 + NODES.index(name)}"

    @property
    def balancer(self) -> str:
        """The range of the load balancer's addresses."""
        return f"{self.net}.128/25"

    @property
    def interface(self) -> str:
        """The machine's end."""
        return f"shipway-k{self.slot}"

    @property
    def registry(self) -> str:
        """What stands before the first slash of an image's name."""
        return f"{self.control}:5000"

    @property
    def zone(self) -> str:
        """Below it are the public names of services, as below `REGION.cloudapp.azure.com`."""
        return f"{self.name}.cloudapp.test"

    @property
    def context(self) -> str:
        """The name of the cluster, its context, its cgroup, and of its entries in the machine's hosts file."""
        return f"shipway-tests-{self.name}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "pki" / "admin.conf"

    def issued(self, name: str) -> Issued:
        """Return where a certificate of the cluster is."""
        return Issued(certificate=self.folder / "pki" / f"{name}.pem", key=self.folder / "pki" / f"{name}.key")

    @property
    def authority(self) -> Path:
        """Who vouches for everybody here."""
        return self.folder / "pki" / "authority.pem"

    # -- networks ----------------------------------------------------------------------------

    def wires(self) -> list[list[str]]:
        """Return the commands that join the machine to the control plane's network; the machine's end is here."""
        return [
            ["ip", "netns", "add", CONTROL],
            ["ip", "link", "add", self.interface, "type", "veth", "peer", "name", "uplink", "netns", CONTROL],
            ["ip", "address", "add", f"{self.host}/24", "dev", self.interface],
            ["ip", "link", "set", self.interface, "up"],
            ["ip", "route", "add", self.balancer, "via", self.control],
        ]

    def switch(self) -> list[list[str]]:
        """Return the commands that make the bridge, in the control plane's network."""
        return [
            ["ip", "link", "set", "lo", "up"],
            ["ip", "link", "add", "bridge", "type", "bridge"],
            ["ip", "address", "add", f"{self.control}/24", "dev", "bridge"],
            ["ip", "link", "set", "uplink", "master", "bridge", "up"],
            ["ip", "link", "set", "bridge", "up"],
            ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0"],
            ["sysctl", "-qw", "net.ipv4.conf.bridge.send_redirects=0"],
        ]

    def plug(self, node: str) -> list[list[str]]:
        """Return the commands that make a node's network and join it to the bridge."""
        inside = ["ip", "-n", node]
        others = [other for other in NODES if other != node]
        return [
            ["ip", "netns", "add", node],
            ["ip", "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", node],
            ["ip", "link", "set", node, "master", "bridge", "up"],
            ["ip", "route", "replace", _pods(node), "via", self.node(node)],
            [*inside, "link", "set", "lo", "up"],
            [*inside, "address", "add", f"{self.node(node)}/24", "dev", "eth0"],
            [*inside, "link", "set", "eth0", "up"],
            [*inside, "route", "add", "default", "via", self.control],
            *([*inside, "route", "add", _pods(other), "via", self.node(other)] for other in others),
            [*entering(node), "sysctl", "-qw", "net.ipv4.ip_forward=1"],
            [
                *entering(node),
                *["iptables", "-t", "nat", "-A", "POSTROUTING"],
                "-s",
                PODS,
                "!",
                "-d",
                PODS,
                "-j",
                "MASQUERADE",
            ],
        ]

    def unplug(self, node: str) -> list[list[str]]:
        """Return the commands that remove a node's network, while nothing runs there."""
        return [["ip", "link", "delete", node], ["ip", "netns", "delete", node]]

    # -- the control plane -------------------------------------------------------------------

    def first(self) -> dict[str, list[str]]:
        """Return the processes that the rest waits for."""
        etcd = "http://127.0.0.1:2379"
        return {
            "registry": ["docker-registry", "serve", str(self.folder / "registry.yml")],
            "etcd": [
                *("etcd", "--data-dir", "/run/etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd),
                *("--listen-peer-urls", "http://127.0.0.1:2380"),
            ],
            "apiserver": [
                str(self.kubernetes / "kube-apiserver"),
                f"--etcd-servers={etcd}",
                f"--bind-address={self.control}",
                f"--advertise-address={self.control}",
                f"--service-cluster-ip-range={SERVICES}",
                f"--client-ca-file={self.authority}",
                *_pair("tls-cert-file", "tls-private-key-file", self.issued("kube-apiserver")),
                *_pair("service-account-key-file", "service-account-signing-key-file", self.issued("service-account")),
                *_pair("kubelet-client-certificate", "kubelet-client-key", self.issued("kubelet-client")),
                f"--kubelet-certificate-authority={self.authority}",
                "--kubelet-preferred-address-types=InternalIP",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                f"--default-not-ready-toleration-seconds={_TOLERATED_S}",
                f"--default-unreachable-toleration-seconds={_TOLERATED_S}",
            ],
        }

    def rest(self) -> dict[str, list[str]]:
        """Return the processes that want an API server."""
        manager, scheduler = self.config("system:kube-controller-manager"), self.config("system:kube-scheduler")
        return {
            "controller-manager": [
                str(self.kubernetes / "kube-controller-manager"),
                f"--kubeconfig={manager}",
                f"--authentication-kubeconfig={manager}",
                f"--authorization-kubeconfig={manager}",
                f"--service-account-private-key-file={self.issued('service-account').key}",
                f"--root-ca-file={self.authority}",
                "--use-service-account-credentials",
                f"--cluster-cidr={PODS}",
                "--leader-elect=false",
                "--node-monitor-period=1s",
                f"--node-monitor-grace-period={_DEAD_S}s",
            ],
            "scheduler": [
                str(self.kubernetes / "kube-scheduler"),
                f"--kubeconfig={scheduler}",
                f"--authentication-kubeconfig={scheduler}",
                f"--authorization-kubeconfig={scheduler}",
                "--leader-elect=false",
            ],
            "coredns": [str(self.coredns), "-conf", str(self.folder / "Corefile")],
        }

    def config(self, user: str) -> Path:
        """Return a user's kubeconfig."""
        return self.folder / "pki" / f"{user}.conf"

    def kubeconfig_of(self, user: str) -> dict[str, Any]:
        """Return a kubeconfig that needs no other file."""
        issued = self.issued(user)
        server = {
            "server": f"https://{self.control}:6443",
            "certificate-authority-data": _packed(self.authority),
        }
        credential = {
            "client-certificate-data": _packed(issued.certificate),
            "client-key-data": _packed(issued.key),
        }
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": self.context, "cluster": server}],
            "users": [{"name": user, "user": credential}],
            "contexts": [{"name": self.context, "context": {"cluster": self.context, "user": user}}],
            "current-context": self.context,
        }

    def corefile(self) -> str:
        """Return the name service's configuration: the cluster's names, the public ones, and nothing else."""
        return f"""
cluster.local 10.in-addr.arpa {{
    bind {self.control}
    errors
    kubernetes cluster.local 10.in-addr.arpa {{
        kubeconfig {self.kubeconfig} {self.context}
        ttl 1
    }}
}}
{self.zone} {{
    bind {self.control}
    errors
    hosts {self.folder}/names {self.zone} {{
        ttl 1
        reload 250ms
    }}
}}
. {{
    bind {self.control}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""

    def dns_service(self) -> dict[str, Any]:
        """Return the Service by which pods reach the name service."""
        ports = [{"name": name.lower(), "protocol": name, "port": 53} for name in ("UDP", "TCP")]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS, "ports": ports},
        }

    def dns_endpoints(self) -> dict[str, Any]:
        """Return where that Service leads."""
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "addressType": "IPv4",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "endpoints": [{"addresses": [self.control]}],
            "ports": [{"name": name.lower(), "protocol": name, "port": 53} for name in ("UDP", "TCP")],
        }

    # -- a node ------------------------------------------------------------------------------

    def boot(self, node: str) -> list[str]:
        """Return the command that runs a node until it is killed, and then all that ran there."""
        return [
            *entering(node),
            *("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"),
            *python("node", str(self.folder), node),
        ]

    def processes(self, node: str) -> dict[str, list[str]]:
        """Return the processes of a node."""
        files = self.folder / node
        return {
            "containerd": ["containerd", "--config", str(files / "containerd.toml")],
            "kubelet": [
                str(self.kubernetes / "kubelet"),
                f"--kubeconfig={self.config(f'system:node:{node}')}",
                f"--config={files}/kubelet.json",
                f"--hostname-override={node}",
                f"--node-ip={self.node(node)}",
            ],
            "proxy": [
                str(self.kubernetes / "kube-proxy"),
                f"--kubeconfig={self.config('system:kube-proxy')}",
                f"--hostname-override={node}",
                f"--cluster-cidr={PODS}",
                "--healthz-bind-address=0.0.0.0:10256",
                "--conntrack-max-per-core=0",  # the machine's business, and not ours to change from in here
                "--conntrack-tcp-timeout-established=0",
                "--conntrack-tcp-timeout-close-wait=0",
            ],
        }

    def kubelet(self, node: str) -> dict[str, Any]:
        """Return a kubelet's configuration."""
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.context}/{node}",
            "failSwapOn": False,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.authority)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(self.issued(node).certificate),
            "tlsPrivateKeyFile": str(self.issued(node).key),
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.folder / "resolv.conf"),
            "nodeStatusUpdateFrequency": "2s",
            "nodeLeaseDurationSeconds": _DEAD_S,
            "syncFrequency": "10s",
            # the machine's disk is not the cluster's business
            "evictionHard": {"nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
        }

    def containerd(self, node: str) -> str:
        """Return a containerd's configuration; the registry's login is the node's, as with AKS and ACR."""
        # Without CAP_SYS_RESOURCE runc may not lower oom_score_adj, and every sandbox fails.
        files = self.folder / node
        return f"""
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{self.registry}/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{files}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{self.folder}/certs.d"
    [plugins."io.containerd.grpc.v1.cri".registry.configs."{self.registry}".auth]
      username = "{USER}"
      password = "{PASSWORD}"
"""

    def hosts_toml(self) -> str:
        """Return whom a node's containerd trusts as the registry."""
        return f'server = "https://{self.registry}"\n[host."https://{self.registry}"]\n  ca = "{self.authority}"\n'

    def network(self, node: str) -> dict[str, Any]:
        """Return how a pod gets its address: a wire to its node, no bridge that service addresses could get lost in."""
        ranges = [[{"subnet": _pods(node)}]]
        ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}
        return {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [{"type": "ptp", "ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": True}}],
        }


def entering(network: str) -> list[str]:
    """Return what runs a command in another network; unlike `ip netns exec` it leaves /sys, and with it cgroups."""
    return ["nsenter", f"--net=/run/netns/{network}"]


def python(*words: str) -> list[str]:
    """Return the command that is one of this package's processes."""
    import sys  # noqa: PLC0415 - of the process that asks

    return [sys.executable, "-m", "tests.cluster.inside", *words]


def _pods(node: str) -> str:
    return f"10.244.{1 + NODES.index(node)}.0/24"


def _pair(certificate: str, key: str, issued: Issued) -> Sequence[str]:
    return (f"--{certificate}={issued.certificate}", f"--{key}={issued.key}")


def _packed(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode("ascii")


def document(value: Mapping[str, Any]) -> str:
    """Return JSON, which is YAML too."""
    return json.dumps(value, indent=1) + "\n"
