"""What the catalogue promises wherever models are: bound to a folder in `tests/contract`, to servers in `tests/stores`.

Publishing is real here: a child process opens each model. What a place cannot promise is left
out where it is bound, and said in `docs/stores.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shipway.artifacts import Digest
from shipway.console import Console
from shipway.errors import GoldenFailed, ModelInUse, ModelMissing, ModelRefused, ModelUntrusted
from shipway.gzipped import stored
from shipway.stores import Catalogue, Keys, open_catalogue
from shipway.stores.catalogue import Published
from shipway.stores.review import verify
from shipway.stores.signing import Signer
from shipway.stores.sweep import Rule
from tests import model_folder

Open = Callable[..., Catalogue]


class CatalogueBasics:
    """Bind it by a child with the fixtures `opens`, which opens one and the same place, and `name`, a model's."""

    @pytest.fixture
    def catalogue(self, opens: Open) -> Catalogue:
        return opens()

    def publish(
        self, catalogue: Catalogue, folder: Path, name: str, *, weight: float = 1.0, aliases: tuple[str, ...] = ()
    ) -> Published:
        return catalogue.publish(
            model_folder.make(folder, weight=weight),
            name=name,
            publisher="ada",
            tell=Console(),
            metrics={"accuracy": 0.5},
            aliases=aliases,
        )

    def test_publish_takes_the_next_number_and_latest_names_it(
        self, catalogue: Catalogue, opens: Open, name: str, tmp_path: Path
    ) -> None:
        made = [self.publish(catalogue, tmp_path / "m", name, weight=weight) for weight in (1, 2)]

        assert [(each.version.version, each.created) for each in made] == [(1, True), (2, True)]
        assert opens().aliases(name) == {"latest": 2}
        assert opens().versions(name) == (made[1].version, made[0].version)
        assert name in opens().names()

    def test_publishers_at_once_get_numbers_of_their_own(self, opens: Open, name: str, tmp_path: Path) -> None:
        def publish(weight: int) -> int:
            return self.publish(opens(), tmp_path / str(weight), name, weight=weight).version.version

        with ThreadPoolExecutor(4) as threads:
            numbers = list(threads.map(publish, range(1, 5)))

        assert sorted(numbers) == [1, 2, 3, 4]
        assert [version.version for version in opens().versions(name)] == [4, 3, 2, 1]
        assert opens().aliases(name) == {"latest": 4}

    def test_a_version_is_pulled_as_it_was_published(self, opens: Open, name: str, tmp_path: Path) -> None:
        published = self.publish(opens(), tmp_path / "m", name).version

        model = opens().resolve(name, "latest")
        folder = opens().pull(model, cache=tmp_path / "cache", tell=Console())

        assert model == published.model
        assert (folder / "model.onnx").read_bytes() == (tmp_path / "m/model.onnx").read_bytes()
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
            file.path for file in model.files
        }

    def test_layer_bytes_are_those_that_the_manifest_names(self, opens: Open, name: str, tmp_path: Path) -> None:
        model = self.publish(opens(), tmp_path / "m", name).version.model

        streamed = b"".join(opens().layer_bytes(model, cache=tmp_path / "none"))

        assert (Digest.of(streamed), len(streamed)) == (model.layer.digest, model.layer.size_bytes)
        assert Digest.of(b"".join(stored([streamed]))) == model.layer.gzip

    def test_promote_moves_an_alias_and_history_tells_who_and_why(self, opens: Open, name: str, tmp_path: Path) -> None:
        for weight in (1, 2):
            self.publish(opens(), tmp_path / "m", name, weight=weight)

        opens().promote(name, 2, "production", who="ada", why="better")
        opens().promote(name, 1, "production", who="bob", why="worse after all")
        again = opens().promote(name, 1, "production", who="eve", why="again")

        assert again is None
        assert opens().aliases(name) == {"latest": 2, "production": 1}
        told = [
            (move.previous, move.version, move.who, move.why)
            for move in opens().history(name)
            if move.alias == "production"
        ]
        assert told == [(None, 2, "ada", "better"), (2, 1, "bob", "worse after all")]
        assert opens().show(name, "production").version == 1


class CatalogueContract(CatalogueBasics):
    """All of it."""

    def test_publish_answers_the_known_number_when_the_content_is_the_same(
        self, opens: Open, name: str, tmp_path: Path
    ) -> None:
        for weight in (1, 2):
            self.publish(opens(), tmp_path / "m", name, weight=weight)

        again = self.publish(opens(), tmp_path / "m", name, weight=1)

        assert (again.version.version, again.created) == (1, False)
        assert opens().aliases(name) == {"latest": 2}

    def test_publish_leaves_nothing_when_the_golden_answers_are_wrong(
        self, catalogue: Catalogue, name: str, tmp_path: Path
    ) -> None:
        folder = model_folder.make(tmp_path / "m", weight=1, answer=2)

        with pytest.raises(GoldenFailed):
            catalogue.publish(folder, name=name, publisher="ada", tell=Console())

        assert catalogue.versions(name) == ()

    def test_publishers_of_one_content_at_once_agree(self, opens: Open, name: str, tmp_path: Path) -> None:
        folders = [model_folder.make(tmp_path / str(number), weight=7) for number in range(3)]

        with ThreadPoolExecutor(3) as threads:
            made = list(
                threads.map(lambda folder: opens().publish(folder, name=name, publisher="ada", tell=Console()), folders)
            )

        digests = {version.version: version.digest for version in opens().versions(name)}
        assert {each.version.version: each.version.digest for each in made}.items() <= digests.items()
        assert len(set(digests.values())) == 1

    def test_publish_moves_the_aliases_that_are_asked_for(self, opens: Open, name: str, tmp_path: Path) -> None:
        self.publish(opens(), tmp_path / "m", name, weight=1, aliases=("staging",))

        self.publish(opens(), tmp_path / "m", name, weight=2, aliases=("staging",))

        assert opens().aliases(name) == {"latest": 2, "staging": 2}

    def test_what_is_not_there_is_told_with_what_is(self, opens: Open, name: str, tmp_path: Path) -> None:
        self.publish(opens(), tmp_path / "m", name, aliases=("staging",))

        with pytest.raises(ModelMissing, match=rf"has no version 9 of {name}; it has 1 to 1"):
            opens().show(name, 9)
        with pytest.raises(ModelMissing, match=rf"no alias 'production' of {name}; its aliases: latest, staging"):
            opens().show(name, "production")
        with pytest.raises(ModelMissing, match="no version 9"):
            opens().promote(name, 9, "staging", who="ada", why="")

    def test_a_pickle_is_refused_by_name(self, catalogue: Catalogue, name: str, tmp_path: Path) -> None:
        folder = model_folder.make(tmp_path / "m")
        (folder / "model.onnx").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")

        with pytest.raises(ModelRefused, match=r"model\.onnx is refused: it is a pickle"):
            catalogue.publish(folder, name=name, publisher="ada", tell=Console())

        assert catalogue.versions(name) == ()

    def test_what_no_trusted_key_signed_is_refused_and_what_one_signed_is_taken(
        self, opens: Open, name: str, tmp_path: Path
    ) -> None:
        ours, theirs = (Signer(Ed25519PrivateKey.generate()) for _ in range(2))
        trusting = Keys(trusted=(ours.public,), signer=ours)
        self.publish(opens(), tmp_path / "m", name, weight=1)
        self.publish(opens(keys=Keys(signer=theirs)), tmp_path / "m", name, weight=2)

        self.publish(opens(keys=trusting), tmp_path / "m", name, weight=3)

        assert opens(keys=trusting).show(name, "latest").version == 3
        with pytest.raises(ModelUntrusted, match="not signed"):
            opens(keys=trusting).show(name, 1)
        with pytest.raises(ModelUntrusted, match="signed by"):
            opens(keys=trusting).show(name, 2)


class ObjectsContract(CatalogueContract):
    """Where models lie as plain objects: they are copied with their signatures, and swept beside publishers."""

    def test_versions_are_copied_there_and_back_with_their_signatures(
        self, opens: Open, name: str, tmp_path: Path
    ) -> None:
        keys = Keys(signer=(signer := Signer(Ed25519PrivateKey.generate())), trusted=(signer.public,))
        here, back = (open_catalogue(place, root=tmp_path, keys=keys) for place in ("here", "back"))
        for weight in (1, 2):
            self.publish(here, tmp_path / "m", name, weight=weight, aliases=("staging",))

        copied = opens(keys=keys).copy_from(here, name, who="ada", aliases=["staging"], tell=Console())
        again = opens(keys=keys).copy_from(here, name, who="ada", aliases=["staging"], tell=Console())
        back.copy_from(opens(keys=keys), name, who="bob", tell=Console())

        assert (copied.created, again.created, again.sent_bytes, again.moves) == ((2,), (), 0, ())
        assert back.versions(name) == here.versions(name, most=1)
        verified = verify(back, name, 2, cache=tmp_path / "cache", tell=Console())
        assert verified.signers == (signer.public,)

    def test_verify_reads_the_store_itself(self, opens: Open, name: str, tmp_path: Path) -> None:
        self.publish(opens(), tmp_path / "m", name)

        verified = verify(opens(), name, "latest", cache=tmp_path / "cache", tell=Console())

        assert (verified.version.version, verified.signers) == (1, ())

    def test_sweep_takes_what_nobody_needs_and_its_number_is_not_taken_again(
        self, opens: Open, name: str, tmp_path: Path
    ) -> None:
        for weight in (1, 2, 3):
            self.publish(opens(), tmp_path / "m", name, weight=weight)
        rule = Rule(released={1: "production runs it"}, younger_than=timedelta())

        said = opens().sweep(name, rule, who="eve", apply=False, tell=Console())
        done = opens().sweep(name, rule, who="eve", apply=True, tell=Console())

        assert sorted(said.going) == sorted(done.going) == [2]
        assert [version.version for version in opens().versions(name)] == [3, 1]
        for number in (1, 3):
            verify(opens(), name, number, cache=tmp_path / "cache", tell=Console())
        assert self.publish(opens(), tmp_path / "m", name, weight=2).version.version == 4

    def test_sweep_harms_no_publisher_beside_it(self, opens: Open, name: str, tmp_path: Path) -> None:
        for weight in (1, 2, 3):
            self.publish(opens(), tmp_path / "m", name, weight=weight)

        def publish(weight: int) -> None:
            for _ in range(2):
                with contextlib.suppress(ModelInUse):
                    self.publish(opens(), tmp_path / str(weight), name, weight=weight, aliases=(f"of-{weight}",))

        def sweep(_: int) -> None:
            with contextlib.suppress(ModelInUse):
                rule = Rule(released={}, younger_than=timedelta())
                opens().sweep(name, rule, who="eve", apply=True, tell=Console())

        with ThreadPoolExecutor(4) as threads:
            work = [threads.submit(publish, weight) for weight in (1, 2)]
            work += [threads.submit(sweep, turn) for turn in range(6)]
            for each in work:
                each.result()

        for version in opens().versions(name):
            verify(opens(), name, version.version, cache=tmp_path / "cache", tell=Console())
        assert {"of-1", "of-2"} <= set(opens().aliases(name))
