"""Addresses: resolved as a registry wrote them, and nothing but an address accepted."""

from __future__ import annotations

import pytest

from shipway.oci.address import Url

HERE = Url.parse("https://registry.example/v2/team/blobs/uploads/")


@pytest.mark.parametrize(
    ("location", "there"),
    [
        ("/v2/up/1?_state=a%2Fb==&x", "https://registry.example/v2/up/1?_state=a%2Fb==&x"),
        ("../2", "https://registry.example/v2/team/blobs/2"),
        ("https://Store.example:443/up?sig=A%2fb+c/~", "https://store.example/up?sig=A%2fb+c/~"),
        ("//other.example:8443/x", "https://other.example:8443/x"),
        ("http://[::1]:5000/x", "http://[::1]:5000/x"),
        ("?more", "https://registry.example/v2/team/blobs/uploads/?more"),
        ("https://store.example", "https://store.example/"),
        ("/a b/\u00e9?q=\u00e9", "https://registry.example/a%20b/%C3%A9?q=%C3%A9"),
    ],
)
def test_location_is_resolved_and_never_rebuilt(location: str, there: str) -> None:
    assert str(HERE.join(location)) == there


@pytest.mark.parametrize(
    "text", ["https://a\nb/", "http://host:99999/", "http://ho st/", "http://[::1/", "http://ex%00/"]
)
def test_text_is_refused_when_it_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its words are the libraries' own
        Url.parse(text)
    with pytest.raises(ValueError):  # noqa: PT011 - its words are the libraries' own
        HERE.join(text)


def test_login_in_an_address_is_noticed_and_left_out() -> None:
    url = Url.parse("https://user:hunter2@registry.example/v2/")

    assert (url.has_login, str(url)) == (True, "https://registry.example/v2/")


def test_query_grows_at_its_end() -> None:
    url = HERE.asking(("mount", "sha256:1"), ("from", "team/base"))

    assert url.target == "/v2/team/blobs/uploads/?mount=sha256%3A1&from=team%2Fbase"
    assert url.asking(("x", "y")).target == f"{url.target}&x=y"
    assert url.asking() == url
    assert url.path == "/v2/team/blobs/uploads/"


def test_port_that_goes_without_saying_is_the_same_origin() -> None:
    assert Url.parse("https://a.example:443/x").origin == Url.parse("https://A.example/y").origin
    assert Url.parse("https://a.example:444/x").origin != Url.parse("https://a.example/x").origin
    assert Url.parse("http://a.example/x").origin != Url.parse("https://a.example/x").origin
