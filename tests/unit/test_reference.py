"""Names of images in a registry: what is one, what is none, and what is said then."""

from __future__ import annotations

import pytest

from shipway.artifacts import Digest
from shipway.errors import ConfigError
from shipway.oci.reference import Reference, is_loopback

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("registry.example/x", Reference(host="registry.example", path="x")),
        ("localhost/x", Reference(host="localhost", path="x")),
        ("Registry.Example:5000/a/b-c/d__e.f", Reference(host="registry.example:5000", path="a/b-c/d__e.f")),
        ("[::1]:5000/x", Reference(host="[::1]:5000", path="x")),
        ("name:80/x:3.13-slim", Reference(host="name:80", path="x", tag="3.13-slim")),
        (f"registry.example/x@{DIGEST}", Reference(host="registry.example", path="x", digest=Digest(DIGEST))),
        (
            f"registry.example/x:tag@{DIGEST}",
            Reference(host="registry.example", path="x", tag="tag", digest=Digest(DIGEST)),
        ),
    ],
)
def test_reference_is_read_when_it_is_one(text: str, reference: Reference) -> None:
    assert Reference.parse(text) == reference
    assert str(reference) == text.replace("Registry.Example", "registry.example")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "registry.example",
        "registry.example/",
        "registry.example/X",
        "registry.example/a//b",
        "registry.example/a/",
        "registry.example/../a",
        "registry.example/a:",
        "registry.example/a@sha256:abc",
        f"registry.example/a@{DIGEST}0",
        "https://registry.example/a",
        "user@registry.example/a",
        "registry.example/a b",
        "registry.example/a?b",
        "registry.example/a\n",
        "-registry.example/a",
        "registry.example:port/a",
        f"registry.example/{'a' * 256}",
        f"registry.example/a:{'t' * 129}",
    ],
)
def test_reference_is_refused_when_it_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"HOST\[:PORT\]/NAME\[:TAG\]\[@sha256:…\] is expected"):
        Reference.parse(text)


@pytest.mark.parametrize("text", ["python:3.13", "library/python", "team/service:1"])
def test_advice_asks_for_the_host_when_a_short_name_was_given(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Reference.parse(text)

    assert caught.value.next.startswith("begin with the registry's host")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.8.9.10", True),
        ("[::1]", True),
        ("[::1]:5000", True),
        ("localhost.example", False),
        ("127.0.0.1.example:5000", False),
        ("10.0.0.1", False),
        ("[fe80::1]:5000", False),
    ],
)
def test_plain_http_is_for_this_machine_alone(host: str, *, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    assert Reference(host=host, path="x").registry_url == f"{'http' if loopback else 'https'}://{host}"
