"""What goes along with an image: what is in it, and how it came about.

Owns two documents that are attached to the image's digest. The bill of materials is the same
on every machine, so it is stored once. The statement of provenance (in-toto, SLSA) says who
made and pushed the image, when, and that its suite passed; none of that may be in the image,
whose digest must be the same for everybody. Neither is signed: whoever may push may write
them. Names, versions and digests go in, and no value that might hold a secret.
https://slsa.dev/spec/v1.0/provenance
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from shipway import __version__, documents
from shipway.artifacts import Digest, Image, Model, Snapshot, SuiteRun
from shipway.config import ImageSettings, LoadCheckSettings
from shipway.errors import ImageCorrupt, ImageMissing
from shipway.oci import compose, sbom
from shipway.oci.compose import MANIFEST, canonical
from shipway.oci.images import Images, described
from shipway.oci.lockfile import Pin
from shipway.oci.referrers import CREATED, Attached, Attachment, attached, content, name_for

STATEMENT_TYPE = "application/vnd.in-toto+json"
FRESH_S = 3600.0  # for so long a statement of the same image counts as this push's too
_SBOM, _PROVENANCE = "sbom", "provenance"
_TESTS = "dev.shipway.tests"
_PREDICATE = "https://slsa.dev/provenance/v1"


class Maker(Struct, frozen=True, kw_only=True):
    """Who makes an image, since when (seconds since 1970), and which suite passed on what it is made of."""

    who: str
    in_ci: bool
    began_s: float
    suite: SuiteRun | None = None


class Evidence(Struct, frozen=True, kw_only=True):
    """Both documents but for the moment of the push: `bill` is `None` where none can be made."""

    maker: Maker
    bill: bytes | None
    parameters: Mapping[str, Any]
    materials: Sequence[Mapping[str, Any]]


class Pushed(Struct, frozen=True, kw_only=True):
    """Who made and pushed an image, when (RFC 3339), and which suite passed, as its provenance says.

    Not signed: whoever may push could have written it. `None` where no suite is known of.
    """

    who: str
    builder: str
    began: str
    finished: str
    tests_passed: int | None
    tests_seconds: float | None


# -- making it ---------------------------------------------------------------------------


def of_composed(
    image: Image,
    *,
    pins: Iterable[Pin],
    lock: bytes,
    model: Model,
    settings: ImageSettings,
    snapshot: Snapshot,
    maker: Maker,
) -> Evidence:
    """Return the evidence of an image that was composed from a snapshot; `pins` are those of the `lock`."""
    base = compose.base(image)
    return Evidence(
        maker=maker,
        bill=sbom.make(image, pins=pins, model=model),
        parameters={
            "commit": snapshot.commit,
            "dirty": snapshot.dirty,
            "model": {"name": model.name, "version": model.version},
            "image": _parameters(settings),
        },
        materials=[
            {"name": "source", "digest": {"gitCommit": snapshot.commit, "gitTree": snapshot.tree}},
            _material(settings.requirements, Digest.of(lock)),
            _material(f"model {model.name} {model.version}", model.digest),
            *([_material("base", base)] if base else []),
        ],
    )


def of_generator(*, lock: bytes, settings: LoadCheckSettings, snapshot: Snapshot, maker: Maker) -> Evidence:
    """Return the evidence of a load generator's image: who made it when, of which commit and lock."""
    return Evidence(
        maker=maker,
        bill=None,
        parameters={"commit": snapshot.commit, "dirty": snapshot.dirty, "locustfile": settings.locustfile},
        materials=[
            {"name": "source", "digest": {"gitCommit": snapshot.commit, "gitTree": snapshot.tree}},
            _material(settings.requirements, Digest.of(lock)),
        ],
    )


def of_recombined(image: Image, *, images: Images, code: Digest, model: Digest, maker: Maker) -> Evidence:
    """Return the evidence of an image that has the code of one image and the model of another."""
    bill = None
    with suppress(ImageCorrupt):  # nobody's wrong bill stands in the way of a rollback
        bills = read_bill(images, code), read_bill(images, model)
        bill = sbom.recombined(image, code=bills[0], model=bills[1]) if bills[0] and bills[1] else None
    return Evidence(
        maker=maker,
        bill=bill,
        parameters={"code": code, "model": model},
        materials=[_material("code", code), _material("model", model)],
    )


def _parameters(settings: ImageSettings) -> dict[str, Any]:
    """Return the settings that shape an image; of what might hold a secret, the names alone."""
    names = {"environment": sorted(settings.environment), "build_args": sorted(settings.build_args)}
    return {**documents.plain(settings), **names}


def _material(name: str, digest: Digest) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest.hex}}


def lacking(
    images: Images, found: Iterable[Attached], image: Image, evidence: Evidence, *, now_s: float
) -> list[Attachment]:
    """Return what of the evidence must be attached now; `found` is what is attached already.

    A statement that was made within the hour is left, unless it knows nothing of the suite
    that passed. Some registries collect what is attached as garbage, so it is looked for.
    """
    subject = described(image.manifest, MANIFEST)
    ours = (each for each in found if each.kind in {_SBOM, _PROVENANCE})
    there = {each.kind: each for each in ours if images.has(each.descriptor)}
    wanted = []
    if evidence.bill is not None:
        bill = _bill(image, evidence.bill)
        if _SBOM not in there or there[_SBOM].descriptor.digest != Digest.of(bill.manifest(subject)):
            wanted.append(bill)
    statement = _statement(image, evidence, now_s)
    if _PROVENANCE not in there or _is_stale(there[_PROVENANCE], statement, now_s):
        wanted.append(statement)
    return wanted


def _is_stale(old: Attached, new: Attachment, now_s: float) -> bool:
    when = _created(old)
    return when is None or now_s - when > FRESH_S or bool(new.annotations.keys() - old.annotations.keys())


def _bill(image: Image, data: bytes) -> Attachment:
    return Attachment(kind=_SBOM, media_type=sbom.MEDIA_TYPE, data=data, created=compose.created(image))


def _statement(image: Image, evidence: Evidence, finished_s: float) -> Attachment:
    suite = evidence.maker.suite
    return Attachment(
        kind=_PROVENANCE,
        media_type=STATEMENT_TYPE,
        data=canonical(_provenance(image, evidence, finished_s)),
        created=moment(finished_s),
        annotations={"in-toto.io/predicate-type": _PREDICATE, **({_TESTS: f"{suite.passed} passed"} if suite else {})},
    )


def _provenance(image: Image, evidence: Evidence, finished_s: float) -> dict[str, Any]:
    maker = evidence.maker
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [_material(compose.labels(image)["org.opencontainers.image.title"], image.digest)],
        "predicateType": _PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:shipway:image:v1",
                "externalParameters": evidence.parameters,
                "resolvedDependencies": evidence.materials,
            },
            "runDetails": {
                "builder": {
                    "id": f"urn:shipway:builder:{'ci' if maker.in_ci else 'local'}",
                    "version": {"shipway": __version__},
                },
                "metadata": {
                    "startedOn": moment(maker.began_s),
                    "finishedOn": moment(finished_s),
                    "shipway_who": maker.who,
                },
                "byproducts": [_tests(maker.suite)] if maker.suite else [],
            },
        },
    }


def _tests(suite: SuiteRun) -> dict[str, Any]:
    return {
        "name": "tests",
        "digest": {"gitTree": suite.tree},
        "annotations": {"passed": suite.passed, "seconds": suite.seconds},
    }


def moment(seconds: float) -> str:
    """Return a time for a document: RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- and reading it ------------------------------------------------------------------------


def read_bill(images: Images, digest: Digest) -> dict[str, Any] | None:
    """Return an image's bill of materials, if one is attached; raises `ImageCorrupt` for none of ours."""
    return _document(images, digest, _SBOM, sbom.count)


def read_statement(images: Images, digest: Digest) -> dict[str, Any] | None:
    """Return an image's statement of provenance, if one is attached; raises `ImageCorrupt` for none of ours."""
    return _document(images, digest, _PROVENANCE, parse)


def pushed_s(images: Images, digest: Digest) -> float | None:
    """Return when an image was pushed last, in seconds since 1970, as its statement says; `None` without one."""
    return next((_created(each) for each in attached(images, digest) if each.kind == _PROVENANCE), None)


def parse(statement: Mapping[str, Any]) -> Pushed:
    """Return what a statement of ours says; raises `ValueError`, `KeyError`, `TypeError`."""
    run = statement["predicate"]["runDetails"]
    found = [each["annotations"] for each in run["byproducts"] if each["name"] == "tests"]
    tests: Mapping[str, Any] = dict(found[0]) if found else {}
    return Pushed(
        who=str(run["metadata"]["shipway_who"]),
        builder=str(run["builder"]["id"]),
        began=str(run["metadata"]["startedOn"]),
        finished=str(run["metadata"]["finishedOn"]),
        tests_passed=tests.get("passed"),
        tests_seconds=tests.get("seconds"),
    )


def _document(
    images: Images, digest: Digest, kind: str, understand: Callable[[Mapping[str, Any]], object]
) -> dict[str, Any] | None:
    """Return an attached document that can be understood: whoever may push can attach anything."""
    for each in attached(images, digest):
        if each.kind == kind:
            with suppress(ImageMissing):  # collected as garbage
                data = content(images, each)
                try:
                    document = documents.parse(dict[str, Any], data)
                    understand(document)
                except (ValueError, KeyError, TypeError) as error:
                    raise ImageCorrupt(
                        f"the {kind} of {images.repository}@{digest} is none of shipway's",
                        advice=f"delete the tag {name_for(digest)}; the next push attaches anew",
                    ) from error
                return document
    return None


def _created(each: Attached) -> float | None:
    try:
        when = datetime.fromisoformat(each.annotations[CREATED])
        return when.timestamp() if when.tzinfo else None
    except (KeyError, ValueError, OverflowError):
        return None
