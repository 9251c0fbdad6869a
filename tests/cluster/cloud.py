"""What plays the cloud's part: addresses for services of type LoadBalancer, and their public names.

As a cloud's controller does, it writes an address into a Service's status; kube-proxy then
serves it on every node. The way to all addresses leads through one node that answers its
probe, another when it stops answering. A Service with Azure's annotation for a DNS label gets
`LABEL.ZONE`, which the cluster's name service and the machine's hosts file know. Whoever tests
what is not ready yet can hold addresses or names back.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shipway.oci.staging import locked
from tests.cluster.api import Api, Refused
from tests.cluster.plan import NODES, Plan

LABEL = "service.beta.kubernetes.io/azure-dns-label-name"
HOSTS = Path("/etc/hosts")
_PROBE_S = 1.0


class Cloud:
    """Brings addresses, names and the way to them up to date, each time that it is asked to."""

    def __init__(self, plan: Plan, api: Api) -> None:
        self.held: set[str] = set()
        self._plan, self._api = plan, api
        self._names: dict[str, str] | None = None
        self._way = ""

    def tick(self) -> None:
        """Do what is to be done now; an API server that does not answer is asked again the next time."""
        with contextlib.suppress(OSError, Refused, http.client.HTTPException):
            self._addresses()
        self._lead()

    def _addresses(self) -> None:
        services = self._api.get("/api/v1/services")["items"]
        if "addresses" not in self.held:
            for service, address in given(services, self._plan.balancer):
                meta = service["metadata"]
                path = f"/api/v1/namespaces/{meta['namespace']}/services/{meta['name']}/status"
                status = {"loadBalancer": {"ingress": [{"ip": address}] if address else None}}
                self._api.patch(path, {"status": status})
                service["status"] = status
        if "names" not in self.held:
            self._tell(named(services, self._plan.zone))

    def _tell(self, names: dict[str, str]) -> None:
        if names == self._names:
            return
        self._names = names
        lines = [f"{address} {name}" for name, address in sorted(names.items())]
        (self._plan.folder / "names").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        write_hosts(self._plan.context, lines)

    def _lead(self) -> None:
        """Lead the balancer's addresses to a node that answers; one that does keeps them."""
        order = sorted(NODES, key=lambda node: node != self._way)
        alive = next((node for node in order if self._answers(node)), None)
        if alive and alive != self._way:
            way = ["ip", "route", "replace", self._plan.balancer, "via", self._plan.node(alive)]
            subprocess.run(way, check=True)
            self._way = alive

    def _answers(self, node: str) -> bool:
        connection = http.client.HTTPConnection(self._plan.node(node), 10256, timeout=_PROBE_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/healthz")
                return connection.getresponse().status == http.client.OK
            except (OSError, http.client.HTTPException):
                return False


def given(services: Iterable[Mapping[str, Any]], balancer: str) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield each service whose address is to change, with the new one."""
    services = list(services)
    taken = {address for service in services for address in _ingress(service)}
    free = (str(each) for each in ipaddress.ip_network(balancer) if str(each) not in taken)
    for service in services:
        wants, has = service["spec"].get("type") == "LoadBalancer", _ingress(service)
        if wants and not has:
            yield dict(service), next(free)
        elif has and not wants:
            yield dict(service), None


def named(services: Iterable[Mapping[str, Any]], zone: str) -> dict[str, str]:
    """Return the public names and where they lead."""
    return {
        f"{label}.{zone}": address
        for service in services
        if (label := service["metadata"].get("annotations", {}).get(LABEL))
        for address in _ingress(service)
    }


def write_hosts(context: str, lines: Iterable[str]) -> None:
    """Let these be the cluster's lines of the machine's hosts file, and leave all others alone."""
    mark = f"# {context}"
    with locked(HOSTS.parent):  # other clusters write there too
        old = HOSTS.read_text("utf-8")
        kept = [line for line in old.splitlines() if not line.endswith(mark)]
        new = "".join(f"{line}\n" for line in [*kept, *(f"{line} {mark}" for line in lines)])
        if new != old:
            with HOSTS.open("r+", encoding="utf-8") as file:  # in place: in a container it is a mount
                file.write(new)  # and never empty: somebody may be looking up a name
                file.truncate()


def _ingress(service: Mapping[str, Any]) -> list[str]:
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    return [each["ip"] for each in ingress if "ip" in each]
