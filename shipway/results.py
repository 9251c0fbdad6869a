"""What the runbooks return: each result with its words for people and its facts for machines.

Pure. Knows nothing of how a result came about, and prints nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from msgspec import Struct

from shipway import documents
from shipway.artifacts import Image, ImageRef, LoadReport, Model, Part, Rollout, SuiteRun, Version, short_commit
from shipway.console import size
from shipway.oci import compose, sbom

if TYPE_CHECKING:  # every command has results, and each only some of these
    from shipway.ledger import Holder, Record
    from shipway.oci.evidence import Pushed
    from shipway.oci.prune import Stored, Verdict
    from shipway.stores import Catalogue
    from shipway.stores.catalogue import Copied, Published
    from shipway.stores.golden import Answer
    from shipway.stores.manifest import ModelVersion, Move, Tensor
    from shipway.stores.review import Compared, Verified
    from shipway.stores.sweep import Swept
    from shipway.targets import Live

PARTS: tuple[Part, ...] = get_args(Part)


class Built(Struct, frozen=True, kw_only=True):
    """An image that is stored, and what it was made of."""

    suite: SuiteRun
    model: Model
    image: Image
    ref: ImageRef
    sent_bytes: int

    def text(self) -> str:
        """The image's reference, for the next command."""
        return str(self.ref)

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "image": str(self.ref),
            "digest": self.ref.digest,
            "build": self.image.build,
            "commit": self.suite.commit,
            "dirty": self.suite.dirty,
            "model": {"name": self.model.name, "version": self.model.version, "digest": self.model.digest},
            "tests_passed": self.suite.passed,
            "sent_bytes": self.sent_bytes,
        }


class Deployed(Struct, frozen=True, kw_only=True):
    """How a deploy that did not fail came out."""

    rollout: Rollout
    record: Record

    def text(self) -> str:
        """One line: what serves where."""
        current, previous = self.rollout.current, self.rollout.previous
        if self.record.outcome == "unchanged":
            return f"nothing to do: {current} serves on {self.rollout.url}"
        before = "nothing served before it"
        if previous:
            before = f"before it: {previous}" if previous != current else "it was down before"
        return f"{self.record.outcome}: {current} serves on {self.rollout.url}; {before}"

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "outcome": self.record.outcome,
            "environment": self.rollout.environment,
            "url": self.rollout.url,
            "current": documents.plain(self.rollout.current),
            "previous": documents.plain(self.rollout.previous) if self.rollout.previous else None,
            "seconds": self.record.seconds,
            "load": self.record.facts.get("load"),
        }


class Status(Struct, frozen=True, kw_only=True):
    """What serves in an environment."""

    environment: str
    live: Live | None
    holder: Holder | None

    def text(self) -> str:
        """A few lines for people."""
        held = f"\nchanging it now: {self.holder}" if self.holder else ""
        if self.live is None:
            return f"nothing serves in {self.environment}{held}"
        health = (
            "healthy"
            if self.live.healthy
            else f"NOT HEALTHY, users can meet: {', '.join(self.live.builds) or 'nothing'}"
        )
        since = _moment(self.live.since)
        again = "" if self.live.healthy else f"\nNext: invoke rollout {self.live.version.digest} starts it again"
        return f"{self.environment}: {self.live.version} on {self.live.url} since {since}, {health}{held}{again}"

    def facts(self) -> dict[str, Any]:
        """For machines: the same keys, null where nothing serves."""
        live = self.live
        return {
            "environment": self.environment,
            "url": live.url if live else None,
            "digest": live.version.digest if live else None,
            "build": live.version.build if live else None,
            "commit": live.version.commit if live else None,
            "model": documents.plain(live.version.model) if live else None,
            "since": _moment(live.since) if live else None,
            "healthy": bool(live and live.healthy),
        }


class Plan(Struct, frozen=True, kw_only=True):
    """What a release would do now.

    `is_down` says that this version should serve, and does not, or not alone; `is_other` that it
    does, but elsewhere or in another manner than the settings and manifests say now.
    """

    environment: str
    tested: bool
    version: Version
    moves: Mapping[str, int]
    serves: bool
    is_down: bool
    is_other: bool
    way_back: Version | None
    refusal: str | None
    downgrade: str | None

    def text(self) -> str:
        """A few lines for people, in the order of the stages."""
        moves = ", ".join(f"{part} {size(count)}" for part, count in self.moves.items() if count)
        lines = [
            f"test      {'passed on this tree before; nothing to test' if self.tested else 'would run'}",
            f"model     {self.version.model.name} {self.version.model.version}{self._downgrade()}",
            f"image     build {self.version.build}, {self.version.digest}",
            f"push      would write {moves or 'nothing'}",
            f"rollout   {self._rollout()}",
            f"way back  {self.way_back or 'none'}",
        ]
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "environment": self.environment,
            "tested": self.tested,
            "version": documents.plain(self.version),
            "bytes": {**self.moves, "total": sum(self.moves.values())},
            "serves": self.serves,
            "way_back": documents.plain(self.way_back) if self.way_back else None,
            "refused": self.refusal,
            "downgrade": self.downgrade,
        }

    def _downgrade(self) -> str:
        return f": would be refused without --allow-downgrade: it {self.downgrade}" if self.downgrade else ""

    def _rollout(self) -> str:
        if self.serves:
            return "nothing to do: it serves already"
        if self.refusal:
            return f"would be refused without --force: it {self.refusal}"
        if self.is_down:
            return "would start it again: it is what should serve, but it is not healthy"
        if self.is_other:
            return "would apply it anew: it serves, but not as the settings and manifests say now"
        return f"would replace {self.way_back}" if self.way_back else "would serve where nothing does"


class Unbuilt(Struct, frozen=True, kw_only=True):
    """All that can be planned before Docker has built what the image stands on."""

    environment: str
    tested: bool
    what: str

    def text(self) -> str:
        """A few lines for people."""
        return "\n".join(
            [
                f"test      {'passed on this tree before; nothing to test' if self.tested else 'would run'}",
                f"image     {self.what}",
                "push      what would move is known once that is built: invoke image",
            ]
        )

    def facts(self) -> dict[str, Any]:
        """For machines: the version and the bytes are not known."""
        return {
            "environment": self.environment,
            "tested": self.tested,
            "version": None,
            "bytes": None,
            "would_build": self.what,
        }


class Shown(Struct, frozen=True, kw_only=True):
    """All that is known of an image. `bill` and `statement` are what is attached to it, unsigned."""

    repository: str
    image: Image
    bill: Mapping[str, Any] | None
    statement: Mapping[str, Any] | None
    pushed: Pushed | None

    def text(self) -> str:
        """A few lines for people."""
        image, version, base = self.image, compose.version(self.image), compose.base(self.image)
        command, user = compose.start(image)
        parts = [f"  {part:<12} {size(image.size_bytes(part)):>9}" for part in PARTS if image.size_bytes(part)]
        lines = [
            f"{self.repository}@{image.digest}",
            f"build      {image.build}, commit {version.commit}",
            f"created    {compose.created(image)} (the commit's time)",
            f"model      {version.model.name} {version.model.version} ({version.model.digest})",
            f"size       {size(sum(image.size_bytes(part) for part in PARTS))}",
            *parts,
            f"made for   {compose.target(image)}",
            f"base       {base or 'none'}",
            f"runs       {' '.join(command)} as {user}",
            f"contents   {self._bill()}",
            f"provenance {self._provenance()}",
        ]
        return "\n".join(map(_printable, lines))

    def facts(self) -> dict[str, Any]:
        """For machines."""
        command, user = compose.start(self.image)
        return {
            "image": f"{self.repository}@{self.image.digest}",
            **documents.plain(compose.version(self.image)),
            "created": compose.created(self.image),
            "base": compose.base(self.image),
            "made_for": compose.target(self.image),
            "command": command,
            "user": user,
            "size_bytes": sum(self.image.size_bytes(part) for part in PARTS),
            "layers": [
                {
                    "part": layer.part,
                    "title": layer.title,
                    "digest": layer.descriptor.digest,
                    "size_bytes": layer.descriptor.size_bytes,
                }
                for layer in self.image.layers
            ],
            "pushed": documents.plain(self.pushed) if self.pushed else None,
            "signed": False,
            "sbom": self.bill,
            "provenance": self.statement,
        }

    def _bill(self) -> str:
        return f"{sbom.count(self.bill)} packages in the SBOM" if self.bill else "no SBOM is attached"

    def _provenance(self) -> str:
        if self.pushed is None:
            return "none is attached: nobody says who pushed it, or whether it was tested"
        tests = "no suite is known to have passed"
        if self.pushed.tests_passed is not None:
            tests = f"{self.pushed.tests_passed} tests passed in {self.pushed.tests_seconds:g} s"
        return f"unsigned: pushed {self.pushed.finished} by {self.pushed.who} ({self.pushed.builder}); {tests}"


class Cleared(Struct, frozen=True, kw_only=True):
    """What of a repository's images went, or would go. `collected` says that the bytes are free at once."""

    repository: str
    verdict: Verdict
    freed_bytes: int
    applied: bool
    collected: bool

    def text(self) -> str:
        """A line for each thing, what goes first."""
        from shipway.oci.prune import told  # noqa: PLC0415 - `invoke prune` alone

        going = [f"{'deleted' if self.applied else 'goes':<8} {told(each)}: {each.why}" for each in self.verdict.going]
        staying = [f"{'stays':<8} {told(each)}: {each.why}" for each in self.verdict.staying]
        return "\n".join(map(_printable, [*going, *staying, self._sum()]))

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "repository": self.repository,
            "applied": self.applied,
            "going": [_stored_facts(each) for each in self.verdict.going],
            "staying": [_stored_facts(each) for each in self.verdict.staying],
            "freed_bytes": self.freed_bytes,
        }

    def _sum(self) -> str:
        if not self.verdict.going and not self.freed_bytes:
            return f"nothing to delete in {self.repository}"
        if not self.applied:
            return f"{size(self.freed_bytes)} would be free; nothing was deleted: invoke prune --apply deletes it"
        if self.collected:
            return f"{size(self.freed_bytes)} are free"
        return f"{size(self.freed_bytes)} are free once the registry has collected its garbage (docs/registries.md)"


def _printable(line: str) -> str:
    """Return what a stranger may have written so that a terminal shows it, and obeys nothing in it."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _stored_facts(each: Stored) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "digest": each.digest,
        "names": sorted(each.names),
        "why": each.why,
        "pushed": _moment(each.pushed_s) if each.pushed_s is not None else None,
        "version": documents.plain(compose.version(each.image)) if each.image else None,
    }


def figures(report: LoadReport) -> dict[str, float]:
    """Return a load report's figures, for a record."""
    return {
        "requests": report.requests,
        "failure_ratio": report.failure_ratio,
        "p50_ms": report.p50_ms,
        "p95_ms": report.p95_ms,
        "p99_ms": report.p99_ms,
        "rate": round(report.rate, 2),
    }


def record_line(record: Record) -> str:
    """Return an attempt for people, on one line."""
    version = record.facts.get("version", {})
    model = version.get("model", {})
    commit = short_commit(version.get("commit", ""))
    what = f"{commit} with {model.get('name')} {model.get('version')}" if version else ""
    took = f"{record.seconds:.0f} s" if record.seconds is not None else "-"
    error = f": {record.facts['error'].splitlines()[0]}" if record.facts.get("error") else ""
    how = f"{record.kind:<9} {record.outcome or 'running':<12} {took:>6}"
    return f"{record.number:>4}  {_moment(record.began)}  {how}  {what}  {record.who}{error}"


def report_text(report: LoadReport) -> str:
    """Return a load report for people."""
    figure = ", ".join(f"{key} {value:g}" for key, value in figures(report).items())
    return f"{report.verdict}: {figure}" + (f"\nreport: {report.html}" if report.html else "")


def report_facts(report: LoadReport) -> dict[str, Any]:
    """Return a load report for machines."""
    return {
        **figures(report),
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        "html": str(report.html) if report.html else None,
    }


def setting_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return settings for people: key, value, source."""
    return "\n".join(f"{row['key']:<28} {json.dumps(row['value']):<50} {row['source']}" for row in rows)


# -- models --------------------------------------------------------------------------------


def published_text(published: Published) -> str:
    """Return what publishing came to, for people."""
    version = published.version
    if published.created:
        return f"published {version.name} version {version.version} ({version.digest})"
    return f"already version {version.version} of {version.name}: the content is the same"


def published_facts(published: Published) -> dict[str, Any]:
    """Return what publishing came to, for machines."""
    version = published.version
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "created": published.created,
    }


def model_rows(catalogue: Catalogue, name: str, *, most: int | None) -> list[dict[str, Any]]:
    """Return the newest versions of a model, newest first, each with the aliases that name it."""
    aliases = catalogue.aliases(name)
    return [
        {
            "version": version.version,
            "aliases": sorted(alias for alias, number in aliases.items() if number == version.version),
            "created": version.created.isoformat(timespec="seconds"),
            "publisher": version.publisher,
            "size_bytes": version.model.size_bytes,
            "metrics": dict(version.metrics),
            "digest": version.digest,
        }
        for version in catalogue.versions(name, most=most)
    ]


def model_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a list of versions for people."""
    return "\n".join(
        f"{row['version']:>5}  {row['created'][:19]}  {size(row['size_bytes']):>9}  {row['digest'][7:19]}  "
        f"{row['publisher']}  {_pairs(row['metrics'])}  {' '.join(row['aliases'])}".rstrip()
        for row in rows
    )


def model_text(version: ModelVersion, *, signers: Sequence[str]) -> str:
    """Return a version for people; `signers` are the keys whose signatures of it hold."""
    tensors = [f"{way:<10} {t.name} {t.type} {list(t.shape)}" for way, ts in _signature(version) for t in ts]
    files = [f"  {size(file.size_bytes):>9}  {file.digest[7:19]}  {file.path}" for file in version.files]
    return "\n".join(
        [
            f"{version.name} version {version.version}",
            f"digest     {version.digest}",
            f"published  {version.created:%Y-%m-%d %H:%M:%S} UTC by {version.publisher}",
            f"commit     {version.commit or 'unknown'}",
            f"metrics    {_pairs(version.metrics) or 'none'}",
            f"signed by  {', '.join(signers) or 'nobody'}",
            *tensors,
            f"golden     {len(version.golden.tensors)} tensor cases, {len(version.golden.exchanges)} exchanges",
            f"layer      {version.layer.digest}, {size(version.layer.size_bytes)}",
            "files",
            *files,
        ]
    )


def move_line(move: Move) -> str:
    """Return one move of an alias for people."""
    came = f"from {move.previous} " if move.previous else ""
    why = f": {move.why}" if move.why else ""
    return f"{move.when:%Y-%m-%d %H:%M:%S} UTC  {move.alias} {came}to {move.version} by {move.who}{why}"


def verified_text(verified: Verified) -> str:
    """Return what was checked, for people."""
    version = verified.version
    signed = f"signed by {', '.join(map(str, verified.signers))}" if verified.signers else "signed by nobody"
    ran = f"; {verified.cases} golden cases answered right" if verified.cases is not None else ""
    return (
        f"{version.name} version {version.version} is whole: {len(version.files)} files, "
        f"{size(version.model.size_bytes)}, hashed as the store sent them; {signed}{ran}"
    )


def verified_facts(verified: Verified) -> dict[str, Any]:
    """Return what was checked, for machines."""
    version = verified.version
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "files": len(version.files),
        "size_bytes": version.model.size_bytes,
        "signers": list(map(str, verified.signers)),
        "golden_cases_run": verified.cases,
    }


def compared_text(compared: Compared) -> str:
    """Return what differs between two versions, for people."""
    before, after = compared.before, compared.after
    lines = [
        f"{before.name} {before.version} -> {after.version}",
        *(f"metric    {name}: {_figure(one)} -> {_figure(two)}" for name, (one, two) in compared.metrics.items()),
        *(f"contract  {name}: {_or_none(one)} -> {_or_none(two)}" for name, (one, two) in compared.contract.items()),
        *(f"file      {name} {_fate(pair)}" for name, pair in sorted(compared.files.items())),
        *(f"answer    {_answer_line(answer)}" for answer in compared.answers),
    ]
    return "\n".join(map(_printable, lines))


def compared_facts(compared: Compared) -> dict[str, Any]:
    """Return what differs between two versions, for machines."""

    def pairs(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        return {name: {"before": one, "after": two} for name, (one, two) in changed.items()}

    return {
        "name": compared.before.name,
        "before": compared.before.version,
        "after": compared.after.version,
        "metrics": pairs(compared.metrics),
        "files": pairs(compared.files),
        "contract": pairs(compared.contract),
        "answers": [documents.plain(answer) for answer in compared.answers],
    }


def copied_text(copied: Copied, to: str) -> str:
    """Return what was copied, for people."""
    numbers, new = " ".join(map(str, copied.versions)), " ".join(map(str, copied.created))
    first = f"{copied.name} {numbers or 'nothing'} in {to}: {new or 'nothing'} new, {size(copied.sent_bytes)} sent"
    return "\n".join([first, *map(move_line, copied.moves)])


def copied_facts(copied: Copied, to: str) -> dict[str, Any]:
    """Return what was copied, for machines."""
    return {
        "name": copied.name,
        "store": to,
        "versions": list(copied.versions),
        "created": list(copied.created),
        "sent_bytes": copied.sent_bytes,
        "moves": [documents.plain(move) for move in copied.moves],
    }


def swept_text(swept: Swept) -> str:
    """Return what went, or would go, for people."""
    word = "deleted" if swept.applied else "goes"
    lines = [
        *(f"{word:<8} {swept.name} {number}: {why}" for number, why in swept.going.items()),
        *(f"{'stays':<8} {swept.name} {number}: {why}" for number, why in swept.staying.items()),
    ]
    amount = f"{len(swept.files)} files, {size(swept.freed_bytes)}"
    if not (swept.going or swept.files):
        lines.append(f"nothing to delete of {swept.name}")
    elif swept.applied:
        lines.append(f"{amount}, are free")
    else:
        lines.append(f"{amount}, would be free; nothing was deleted: invoke model.gc --apply deletes it")
    return "\n".join(map(_printable, lines))


def swept_facts(swept: Swept) -> dict[str, Any]:
    """Return what went, or would go, for machines."""
    return {
        "name": swept.name,
        "applied": swept.applied,
        "going": [{"version": number, "why": why} for number, why in swept.going.items()],
        "staying": [{"version": number, "why": why} for number, why in swept.staying.items()],
        "files": list(swept.files),
        "freed_bytes": swept.freed_bytes,
    }


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _or_none(value: Any) -> str:
    return "none" if value is None else str(value)


def _fate(pair: tuple[str | None, str | None]) -> str:
    before, after = pair
    if before is None or after is None:
        return "is new" if before is None else "is gone"
    return f"changed: {before[7:19]} -> {after[7:19]}"


def _answer_line(answer: Answer) -> str:
    what = f"{answer.case}: {answer.output}".removesuffix(": ")
    figures = []
    if answer.largest is not None and answer.mean is not None:
        figures.append(f"differs by {answer.largest:.4g} at most, {answer.mean:.4g} on average")
    if answer.rows:
        figures.append(f"the largest value moved in {answer.changed} of {answer.rows} rows")
    return f"{what} {'; '.join([*figures, *([answer.problem] if answer.problem else [])])}"


def _signature(version: ModelVersion) -> tuple[tuple[str, tuple[Tensor, ...]], ...]:
    return ("input", version.inputs), ("output", version.outputs)


def _pairs(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in sorted(metrics.items()))


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
