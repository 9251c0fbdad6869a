"""Where a credential is found, in which order, and what is said when it is not."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shipway.config import PushSettings
from shipway.errors import LoginMissing, ToolFailed, ToolMissing
from shipway.oci.credentials import AzureCredential, Credential, Secret, find_credential
from shipway.proc import Completed

HOST = "registry.example:5000"
DOCKER_LOGIN = f"docker login {HOST}, then invoke doctor"


@dataclass
class Helper:
    """A credential helper, and nothing else, as processes go."""

    stdout: str = ""
    code: int = 0
    error: Exception | None = None
    asked: list[tuple[tuple[str, ...], bytes | None, float | None]] = field(default_factory=list)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout_s: float | None = None,
    ) -> Completed:
        words = tuple(map(str, argv))
        assert (cwd, on_line) == (None, None)
        assert env is not None
        assert words[0].startswith("docker-credential-"), words
        self.asked.append((words, stdin, timeout_s))
        if self.error:
            raise self.error
        return Completed(argv=words, code=self.code, stdout=self.stdout.encode(), tail="")


@dataclass
class Config:
    """Docker's configuration of one test."""

    folder: Path
    helper: Helper = field(default_factory=Helper)
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "config.json"

    def write(self, document: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        self.path.write_text(document if isinstance(document, str) else json.dumps(document), "utf-8")

    def find(self, host: str = HOST, **settings: Any) -> Credential | AzureCredential | None:
        environ = {"DOCKER_CONFIG": str(self.folder)} | self.environ
        pushed = PushSettings(repository=f"{HOST}/team/thing", **settings)
        return find_credential(host, settings=pushed, environ=environ, proc=self.helper)

    def credential(self, **parts: Any) -> Credential:
        """Return what is found in the file itself."""
        return Credential(source=f"Docker's configuration, {self.path}", advice=DOCKER_LOGIN, **parts)


@pytest.fixture
def docker(tmp_path: Path) -> Config:
    return Config(tmp_path / "docker")


def _packed(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _entry() -> dict[str, Any]:
    return {"auths": {HOST: {"auth": _packed("alice", "p:w")}}}


VARIABLES = {"REGISTRY_USER": "ci", "REGISTRY_PASSWORD": "s3cret"}
FROM_VARIABLES = Credential(
    source="the variables REGISTRY_USER and REGISTRY_PASSWORD",
    user="ci",
    secret=Secret("s3cret"),
    advice="set REGISTRY_USER and REGISTRY_PASSWORD to a login that may do this, then invoke doctor",
)


def test_secret_shows_nothing_when_it_is_printed() -> None:
    credential = Credential(source="a test", user="alice", secret=Secret("s3cret"), advice="")

    shown = f"{credential} {credential!r} {credential.secret} {credential.secret!r} {[credential.secret]} %s"

    assert "s3cret" not in shown % credential.secret
    assert credential.secret.reveal() == "s3cret"


# -- the order ----------------------------------------------------------------------------


def test_variables_go_first_when_they_are_set(docker: Config) -> None:
    docker.write(_entry())
    docker.environ = VARIABLES

    assert docker.find() == FROM_VARIABLES


@pytest.mark.parametrize("environ", [{}, {"REGISTRY_USER": "ci"}, {"REGISTRY_USER": "ci", "REGISTRY_PASSWORD": ""}])
def test_docker_goes_next_when_the_variables_are_not_both_set(docker: Config, environ: dict[str, str]) -> None:
    docker.write(_entry())
    docker.environ = environ

    assert docker.find() == docker.credential(user="alice", secret=Secret("p:w"))


def test_nothing_is_found_when_there_is_nothing(docker: Config) -> None:
    assert docker.find() is None


def test_nothing_is_looked_for_when_the_login_is_anonymous(docker: Config) -> None:
    docker.write("{ not JSON")
    docker.environ = VARIABLES

    assert docker.find(login="anonymous") is None


def test_variables_have_other_names_when_the_settings_say_so(docker: Config) -> None:
    docker.environ = {"U": "ci", "P": "s3cret"}

    found = docker.find(login="environment", user_variable="U", password_variable="P")  # noqa: S106 - a name

    assert isinstance(found, Credential)
    assert (found.source, found.user, found.secret) == ("the variables U and P", "ci", Secret("s3cret"))


def test_error_names_the_variables_when_they_are_wanted_and_not_set(docker: Config) -> None:
    docker.write(_entry())

    with pytest.raises(LoginMissing, match="REGISTRY_USER and REGISTRY_PASSWORD are not both set") as caught:
        docker.find(login="environment")
    assert caught.value.next == "set REGISTRY_USER and REGISTRY_PASSWORD, then invoke doctor"


def test_error_names_the_file_when_docker_is_wanted_and_knows_nothing(docker: Config) -> None:
    docker.environ = VARIABLES

    with pytest.raises(LoginMissing) as caught:
        docker.find(login="docker")
    assert str(docker.path) in caught.value.message
    assert caught.value.next == DOCKER_LOGIN


def test_variables_are_not_for_another_registry_when_a_base_lives_there(docker: Config) -> None:
    docker.environ = VARIABLES
    docker.write({"auths": {"bases.example": {"auth": _packed("alice", "base")}}})

    assert docker.find("elsewhere.example", login="environment") is None
    found = docker.find("bases.example", login="environment")
    assert isinstance(found, Credential)
    assert found.secret == Secret("base")


# -- Docker's configuration ---------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [HOST, f"https://{HOST}", f"https://{HOST}/", f"http://{HOST}/v1/", f"{HOST}/v2", f"https://{HOST}/v2/"]
)
def test_entry_is_found_when_its_host_is_spelt_otherwise(docker: Config, key: str) -> None:
    docker.write({"auths": {"registry.example": {"auth": _packed("x", "y")}, key: {"auth": _packed("alice", "pw")}}})

    assert docker.find() == docker.credential(user="alice", secret=Secret("pw"))


@pytest.mark.parametrize("key", ["registry.example", f"{HOST}/team", f"x{HOST}", f"{HOST}1", "*"])
def test_entry_is_not_taken_when_it_is_anothers(docker: Config, key: str) -> None:
    docker.write({"auths": {key: {"auth": _packed("alice", "pw")}}})

    assert docker.find() is None


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ({"username": "alice", "password": "pw"}, {"user": "alice", "secret": Secret("pw")}),
        ({"auth": _packed("alice", ""), "identitytoken": "idt"}, {"kind": "identity", "secret": Secret("idt")}),
        ({"registrytoken": "bt", "auth": _packed("a", "b")}, {"kind": "bearer", "secret": Secret("bt")}),
    ],
)
def test_entry_says_which_kind_it_is_when_it_is_read(docker: Config, entry: Any, parts: dict[str, Any]) -> None:
    docker.write({"auths": {HOST: entry}})

    assert docker.find() == docker.credential(**parts)


def test_empty_entry_is_nothing_when_no_helper_is_named(docker: Config) -> None:
    docker.write({"auths": {HOST: {}}})

    assert docker.find() is None


@pytest.mark.parametrize(
    "document",
    [
        '{"auths": {"registry.example:5000": {"auth": "c2VjcmV0',
        "[]",
        "\x00",
        "[" * 9999,
        {"auths": ["secret"]},
        {"auths": {HOST: "secret"}},
        {"auths": {HOST: {"auth": "secret!"}}},
        {"auths": {HOST: {"auth": base64.b64encode(b"\xff:secret").decode()}}},
        {"credHelpers": "secret"},
    ],
)
def test_error_names_the_file_and_quotes_nothing_when_it_is_corrupt(docker: Config, document: Any) -> None:
    docker.write(document)

    with pytest.raises(LoginMissing) as caught:
        docker.find()
    assert str(docker.path) in caught.value.message
    assert "secret" not in str(caught.value)
    assert "c2Vj" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "entry",
    [
        {"registrytoken": "secret\nHost: x"},
        {"registrytoken": "secret\u00e9"},
        {"identitytoken": "secret\ud800"},
        {"username": "alice", "password": "secret\ud800"},
        {"username": "secret\ud800", "password": "pw"},
    ],
)
def test_error_names_the_file_and_quotes_nothing_when_a_login_cannot_be_sent(docker: Config, entry: Any) -> None:
    docker.write({"auths": {HOST: entry}})

    with pytest.raises(LoginMissing) as caught:
        docker.find()
    assert (str(docker.path) in caught.value.message, caught.value.next) == (True, DOCKER_LOGIN)
    assert "secret" not in str(caught.value)


def test_error_names_the_variables_when_what_they_hold_cannot_be_sent(docker: Config) -> None:
    docker.environ = VARIABLES | {"REGISTRY_PASSWORD": "s3cret\udce9"}  # bytes that are no UTF-8

    with pytest.raises(LoginMissing, match="REGISTRY_USER and REGISTRY_PASSWORD") as caught:
        docker.find()
    assert "s3cret" not in str(caught.value)


def test_home_is_looked_at_when_no_variable_says_otherwise(tmp_path: Path) -> None:
    home = Config(tmp_path / ".docker")
    home.write(_entry())
    settings = PushSettings(repository=f"{HOST}/team/thing")

    found = find_credential(HOST, settings=settings, environ={"HOME": str(tmp_path)}, proc=home.helper)

    assert found == home.credential(user="alice", secret=Secret("p:w"))


def test_podmans_file_is_looked_at_when_dockers_has_nothing(docker: Config, tmp_path: Path) -> None:
    docker.write({"auths": {}})
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / "auth.json").write_text(json.dumps(_entry()), "utf-8")
    docker.environ = {"XDG_RUNTIME_DIR": str(tmp_path)}

    found = docker.find()

    assert isinstance(found, Credential)
    assert found.secret == Secret("p:w")


# -- credential helpers -------------------------------------------------------------------


def _said(user: str, secret: str) -> str:
    return json.dumps({"ServerURL": HOST, "Username": user, "Secret": secret})


@pytest.mark.parametrize("document", [{"credHelpers": {HOST: "pass"}, "credsStore": "x"}, {"credsStore": "pass"}])
def test_helper_is_asked_for_the_host_when_one_is_named(docker: Config, document: Any) -> None:
    docker.write(document)
    docker.helper = Helper(stdout=_said("alice", "from pass"))

    found = docker.find()

    assert found == Credential(
        source="Docker's configuration, helper pass", user="alice", secret=Secret("from pass"), advice=DOCKER_LOGIN
    )
    assert str(found) == "alice, from Docker's configuration, helper pass"
    assert docker.helper.asked == [(("docker-credential-pass", "get"), HOST.encode(), 10.0)]


def test_helper_gives_an_identity_token_when_the_user_says_so(docker: Config) -> None:
    docker.write({"credsStore": "pass"})
    docker.helper = Helper(stdout=_said("<token>", "idt"))

    found = docker.find()

    assert isinstance(found, Credential)
    assert (found.kind, found.user, found.secret) == ("identity", "", Secret("idt"))


def test_entry_in_the_file_is_taken_when_the_helper_knows_nothing(docker: Config) -> None:
    docker.write({"credsStore": "pass", **_entry()})
    docker.helper = Helper(stdout="credentials not found in native keychain\n", code=1)

    assert docker.find() == docker.credential(user="alice", secret=Secret("p:w"))


@pytest.mark.parametrize(
    ("helper", "said"),
    [
        (Helper(error=ToolMissing(program="docker-credential-pass")), "there is no such program"),
        (Helper(error=ToolFailed(argv=["x"], code=-15, tail="no end after 10 s")), "no end after 10 s"),
        (Helper(stdout="pass store is locked\n", code=2), "pass store is locked"),
        (Helper(stdout="secret"), "no credential"),
        (Helper(stdout='{"Username": "secret"}'), "no credential"),
        (Helper(stdout='["secret"]'), "no credential"),
        (Helper(stdout="[" * 9999), "no credential"),
    ],
)
def test_error_names_the_helper_when_it_fails(docker: Config, helper: Helper, said: str) -> None:
    docker.write({"credsStore": "pass", **_entry()})
    docker.helper = helper

    with pytest.raises(LoginMissing) as caught:
        docker.find()
    assert f"docker-credential-pass, which {docker.path} names, gave no credential for {HOST}" in str(caught.value)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


# -- Azure --------------------------------------------------------------------------------


@dataclass
class Entra:
    """What azure-identity's credentials are, as far as we use them."""

    token: str = "entra"  # noqa: S105 - made up
    error: Exception | None = None
    scopes: tuple[str, ...] = ()

    def get_token(self, *scopes: str) -> Entra:
        self.scopes = scopes
        if self.error:
            raise self.error
        return self


def _azure(entra: Entra, named: list[str], **settings: Any) -> AzureCredential:
    def make(name: str) -> Entra:
        named.append(name)
        return entra

    found = find_credential(
        HOST,
        settings=PushSettings(repository=f"{HOST}/team/thing", login="azure", **settings),
        environ={},
        proc=Helper(),
        azure=make,
    )
    assert isinstance(found, AzureCredential)
    return found


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("cli", "AzureCliCredential"),
        ("managed_identity", "ManagedIdentityCredential"),
        ("workload_identity", "WorkloadIdentityCredential"),
        ("environment", "EnvironmentCredential"),
    ],
)
def test_azure_is_asked_with_the_named_credential_when_a_token_is_wanted(setting: str, name: str) -> None:
    named: list[str] = []
    entra = Entra()

    found = _azure(entra, named, azure_credential=setting)
    assert named == []  # only once the registry wants it
    token = found.entra()

    assert (str(found), token, named) == (f"Azure's {name}", Secret("entra"), [name])
    assert entra.scopes == ("https://containerregistry.azure.net/.default",)


@pytest.mark.parametrize(
    ("error", "tail"),
    [
        (
            RuntimeError("Please run 'az login' to set up an account\nmore"),
            "Please run 'az login' to set up an account",
        ),
        (ValueError(), "ValueError()"),
    ],
)
def test_error_names_the_azure_credential_when_it_gives_no_token(error: Exception, tail: str) -> None:
    found = _azure(Entra(error=error), [])

    with pytest.raises(LoginMissing) as caught:
        found.entra()
    assert caught.value.message == "Azure's AzureCliCredential gave no token"
    assert (caught.value.tail, caught.value.next) == (tail, "az login, then invoke doctor")


def test_error_says_what_to_install_when_azure_identity_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure", None)  # an import of it fails now
    settings = PushSettings(repository=f"{HOST}/team/thing", login="azure")
    found = find_credential(HOST, settings=settings, environ={}, proc=Helper())
    assert isinstance(found, AzureCredential)

    with pytest.raises(LoginMissing, match="azure-identity, which is not installed") as caught:
        found.entra()
    assert caught.value.next == "pip install '.[azure]' in a clone of shipway, then invoke doctor"
