"""The nightly CronJob, looked at by a real API server: accepted, and by the restricted pod security level too."""

from __future__ import annotations

import json

from tests.cluster.cluster import Cluster
from tests.system.project import ROOT


def test_nightly_is_accepted_without_a_warning_of_pod_security(cluster: Cluster, namespace: str) -> None:
    for mode in ("enforce", "warn"):
        cluster.kubectl("label", "namespace", namespace, f"pod-security.kubernetes.io/{mode}=restricted")
    rendered = cluster.kubectl("kustomize", str(ROOT / "k8s/nightly"))
    assert "namespace: image-classifier" in rendered

    ours = rendered.replace("namespace: image-classifier", f"namespace: {namespace}")
    done = cluster.tried("apply", "--dry-run=server", "--output=json", "--filename=-", stdin=ours)

    assert (done.returncode, done.stderr) == (0, "")
    kinds = sorted(each["kind"] for each in json.loads(done.stdout)["items"])
    assert kinds == ["ConfigMap", "ConfigMap", "CronJob"]


def test_pod_of_the_nightly_job_is_admitted_by_the_restricted_level(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    cluster.kubectl("create", "serviceaccount", "releaser", "--namespace", namespace)
    rendered = cluster.kubectl("kustomize", str(ROOT / "k8s/nightly"))
    cluster.kubectl("apply", "--filename=-", stdin=rendered.replace("image-classifier", namespace))

    cluster.kubectl("create", "job", "now", "--from=cronjob/nightly", "--namespace", namespace)

    cluster.kubectl("wait", "pod", "--selector=job-name=now", "--for=create", "--timeout=30s", "-n", namespace)
    pod = cluster.get("pods", "--selector=job-name=now", "--namespace", namespace)["items"][0]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("releaser", True)
