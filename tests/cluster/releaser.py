"""Whoever releases, with the rights of k8s/setup and none besides."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.cluster import Cluster

ROOT = Path(__file__).parents[2]
_OURS = "image-classifier"  # the namespace that k8s/setup names


def set_up(cluster: Cluster, namespace: str) -> None:
    """Apply k8s/setup to this namespace instead, as an administrator does."""
    rendered = cluster.kubectl("kustomize", str(ROOT / "k8s" / "setup"))
    named = rendered.replace(f"namespace: {_OURS}\n", f"namespace: {namespace}\n")
    named = named.replace(f"name: {_OURS}\n", f"name: {namespace}\n")
    assert _OURS not in named
    cluster.kubectl("apply", "--filename=-", stdin=named)


def log_in(cluster: Cluster, namespace: str, folder: Path) -> dict[str, str]:
    """Return the environment of a releaser: kubectl's configuration with a token of its account alone."""
    token = cluster.kubectl("create", "token", "releaser", "--namespace", namespace, "--duration=2h").strip()
    config = json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json"))
    config["users"] = [{"name": "releaser", "user": {"token": token}}]
    config["contexts"][0]["context"]["user"] = "releaser"
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config), "utf-8")
    file.chmod(0o600)
    return {**cluster.environ, "KUBECONFIG": str(file)}
