"""Where users reach a Deployment on a cluster, and what answers there, asked from this machine.

Owns the waiting: a load balancer gets its address, and a name begins to resolve, when the cloud
is ready. What is waited for is told once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shipway.artifacts import Version
from shipway.config import RolloutSettings, ServiceSettings
from shipway.console import Tell
from shipway.errors import RolloutError
from shipway.targets import answers, manifests
from shipway.targets.kubectl import Kubectl, Object

_POLL_S = 1.0
_OTHER_S = 30.0  # as long may another build answer: nodes hear of new pods one after the other

Ask = Callable[[str, ServiceSettings], str | None]


class Public:
    """The public address of one Deployment."""

    def __init__(
        self,
        kubectl: Kubectl,
        *,
        name: str,
        settings: RolloutSettings,
        tell: Tell,
        ask: Ask = answers.build,
        unresolved: Callable[[str], str | None] = answers.unresolved,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look for the Service that selects the pods of the Deployment `name`."""
        self._kubectl = kubectl
        self._name = name
        self._settings = settings
        self._tell = tell
        self._ask = ask
        self._unresolved = unresolved
        self._sleep = sleep
        self._clock = clock

    @property
    def url(self) -> str:
        """The name that the settings say, else the load balancer's address, else an empty text."""
        return self._settings.url or self._address() or ""

    def build(self, url: str, service: ServiceSettings) -> str | None:
        """Return the build that answers there now."""
        return self._ask(url, service) if url else None

    def require(self, version: Version, service: ServiceSettings, *, error: type[RolloutError]) -> None:
        """Have the load balancer's address, and the name for it, say the right build some times in a row."""
        asked: list[Callable[[], str | None]] = [self._address] if self._address() is not None else []
        if self._settings.url:
            asked.append(lambda: self._settings.url)
        if not asked:
            raise error(
                f"users have no address for {self._name}",
                advice="make its Service one of type LoadBalancer, or say the address in [rollout] url",
            )
        for address in asked:
            url = self._answering(address, version, service, error=error)
            self._tell.say("rollout", f"build {version.build[:12]} answers on {url}")

    def _answering(
        self,
        address: Callable[[], str | None],
        version: Version,
        service: ServiceSettings,
        *,
        error: type[RolloutError],
    ) -> str:
        """Return the address once the right build answers on it; say what is waited for."""
        began, told, url, in_a_row = self._clock(), "", "", 0
        while in_a_row < self._settings.proofs:
            url = url or address() or ""
            why = self._unresolved(url) if url else f"the Service of {self._name} has no address yet"
            answer = None if why else self._ask(url, service)
            in_a_row = in_a_row + 1 if answer == version.build else 0
            if in_a_row:
                continue
            why = why or (f"build {answer} answers on {url}" if answer else f"nobody answers on {url} yet")
            waited_s = self._clock() - began
            if waited_s > (_OTHER_S if answer else self._settings.address_timeout_s):
                raise error(f"{version} does not answer users: {why}, after {waited_s:.0f} s")
            if why != told:
                self._tell.say("rollout", f"waiting: {why}")
                told = why
            self._sleep(_POLL_S)
        return url

    def _address(self) -> str | None:
        """Return the load balancer's address; an empty text while it has none, `None` where there is no balancer."""
        deployment = self._kubectl.get("deployments.apps", self._name)
        labels = manifests.pod_labels(deployment) if deployment else {}
        found = [each for each in self._kubectl.find("services") if _is_balancer(each)]
        service = next((each for each in found if manifests.selects(each, labels)), None)
        if service is None:
            return None
        given = next(iter(service.get("status", {}).get("loadBalancer", {}).get("ingress") or ()), None)
        if given is None:
            return ""
        host, port = given.get("ip") or given["hostname"], service["spec"]["ports"][0]["port"]
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}" if port == 80 else f"http://{host}:{port}"  # noqa: PLR2004 - HTTP's own


def _is_balancer(service: Object) -> bool:
    return bool(service["spec"].get("type") == "LoadBalancer")
