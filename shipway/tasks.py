"""The Invoke tasks: a few lines each around `flow` and the catalogue.

Parses flags, reads the process environment (nothing below does), prints results and turns
errors into exit codes. Imports nothing heavy: `invoke --list` must stay as quick as Invoke.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import gc
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke import Collection, Context, Exit, Task, task

from shipway.errors import ConfigError, Interrupted, MachineRefused, ShipwayError

if TYPE_CHECKING:
    from shipway.site import Site

# ruff: noqa: PLC0415 - every task imports what it needs when it runs

HELP = {  # by the argument's name, or by its task's and its own
    "env": "The environment, a name from release.toml (default: its project.environment).",
    "json": "Print the result, or the error, as JSON.",
    "wait": "Wait while another release holds the lock, instead of exiting with 4.",
    "force": "Roll out a digest although it failed, or was rolled back, here before.",
    "allow_downgrade": "Take an older model than the one released here, although nobody named it.",
    "again": "Run the test suite although this very tree passed before.",
    "model": "The model's version number (default: what the alias in release.toml names).",
    "digest": "The image's digest, sha256:…; invoke history --json lists those that served.",
    "ref": "A digest, a tag, a build id, or HOST/NAME@sha256:… (default: the newest tested image).",
    "apply": "Delete what would go; without it nothing is deleted.",
    "only": "model or code: go back with that alone and keep the other.",
    "url": "The service's address (default: the environment's own).",
    "users": "Simulated users at once (default: release.toml).",
    "seconds": "How long to measure, warm-up excluded (default: release.toml).",
    "rate": "Requests per second in all (default: release.toml).",
    "workers": "Load generators that share the users and the rate (default: one for each processor, 4 in a cluster).",
    "in_cluster": "Let generators in the environment's cluster make the load, and bring their report home.",
    "port": "The port to serve on (default: release.toml's service.port).",
    "store": "Where models are published (default: release.toml).",
    "name": "The model's name (default: release.toml).",
    "version": "The version's number, or an alias.",
    "most": "How many versions to list at most.",
    "folder": "The folder with model.onnx, golden/ and the rest.",
    "run": "Open the model too, in a limited child process, and ask it its golden cases.",
    "before": "The version's number or alias to compare with.",
    "after": "The version's number or alias that is compared.",
    "to": "The store to copy into: a folder, an address, or env:NAME, the store of that environment.",
    "days": "Versions younger than this stay, whoever needs them.",
    "file": "The new file for the private key; nobody else may read it.",
    "metric": "A figure to publish with it, such as accuracy=0.91; may be given often.",
    "alias": "An alias to move to the version, besides latest; may be given often.",
    "target": "The alias to move, such as production.",
    "why": "Why it is moved, for the history.",
    "expected": "Move the alias only if it names this version now.",
    "promote.version": "The version's number.",
    "copy.alias": "An alias whose version is copied, and which is moved there too; may be given often.",
    "into": "The folder to put the files into; it must not exist yet.",
}


# What a machine may refuse at any time; another error of the system is a mistake of ours, and shows its trace.
_REFUSALS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
        *(errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)


_ON_FLAGS = "invoke --help, and then the command, explains it; a name that begins with - is written ./-"

_COLLECTED_EVERY = 50_000  # new objects, where Python says 700: importing a command's modules makes no garbage

_SITES: list[Site] = []  # what the running task opened, and closes again


def command(body: Callable[..., None]) -> Task[Any]:
    """Make a task of `body`: shipway's errors become a message and an exit code, nothing else."""

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> None:
        from shipway.console import Console
        from shipway.proc import signals_as_errors

        try:
            with signals_as_errors(), _refusals_as_errors(), _sites_closed():
                for word in needed:  # invoke takes there whatever comes first: `--help` too
                    if str(kwargs.get(word, "")).startswith("-"):
                        raise ConfigError(f"{kwargs[word]} stands where {word.upper()} belongs", advice=_ON_FLAGS)
                body(*args, **kwargs)
        except ShipwayError as error:
            if kwargs.get("json"):
                facts = {"exit": error.code, "kind": type(error).__name__, "message": str(error)}
                _print("", {"error": facts}, as_json=True)
            Console().fail(str(error))
            raise Exit(code=error.code) from error
        except KeyboardInterrupt as error:
            Console().fail("interrupted")
            raise Exit(code=Interrupted.code) from error

    words = body.__code__.co_varnames[1 : body.__code__.co_argcount]
    needed = words[: len(words) - len(body.__defaults__ or ())]
    made: Task[Any] = task(help={word: HELP.get(f"{body.__name__}.{word}", HELP[word]) for word in words})(run)
    return made


@contextlib.contextmanager
def _sites_closed() -> Iterator[None]:
    try:
        yield
    finally:
        while _SITES:
            _SITES.pop().close()


@contextlib.contextmanager
def _refusals_as_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise MachineRefused(f"{error.filename or 'this machine'}: {error.strerror}") from error


# -- the stages, one by one --------------------------------------------------------------


@command
def test(_c: Context, env: str = "", json: bool = False) -> None:
    """Run the test suite with the image's own locked dependencies."""
    from shipway import documents, flow

    suite = flow.test(_site(env), again=True)
    _print(f"{suite.passed} passed", documents.plain(suite), as_json=json)


@command
def image(_c: Context, env: str = "", model: str = "", allow_downgrade: bool = False, json: bool = False) -> None:
    """Compose the image from the commit, the locked dependencies and the model; print its digest."""
    from shipway import flow

    composed = flow.image(_site(env), version=_number(model, "--model"), allow_downgrade=allow_downgrade)
    _print(composed.digest, {"digest": composed.digest, "build": composed.build}, as_json=json)


@command
def push(_c: Context, env: str = "", model: str = "", allow_downgrade: bool = False, json: bool = False) -> None:
    """Compose the image, store what is not there yet, and print repository@sha256:…."""
    from shipway import flow

    ref = flow.push(_site(env), version=_number(model, "--model"), allow_downgrade=allow_downgrade)
    _print(str(ref), {"image": str(ref), "digest": ref.digest}, as_json=json)


@command
def rollout(
    _c: Context, digest: str, env: str = "", wait: bool = False, force: bool = False, json: bool = False
) -> None:
    """Roll out the image with this digest, checked as every release is."""
    from shipway import flow

    deployed = flow.deploy(_site(env), _digest(digest), kind="rollout", wait=wait, force=force)
    _print(deployed.text(), deployed.facts(), as_json=json)


@command
def loadcheck(
    _c: Context,
    url: str = "",
    users: str = "",
    seconds: str = "",
    rate: str = "",
    env: str = "",
    json: bool = False,
) -> None:
    """Put load on a deployed service and hold its figures against the limits."""
    from shipway import load, results

    site = _site(env, loadcheck={"users": users, "seconds": seconds, "rate": rate})
    report = load.loadcheck(site, url=url or None)
    _print(results.report_text(report), results.report_facts(report), as_json=json)


@command
def loadtest(
    _c: Context,
    url: str = "",
    users: str = "",
    seconds: str = "",
    rate: str = "",
    workers: str = "",
    in_cluster: bool = False,
    env: str = "",
    json: bool = False,
) -> None:
    """Put more load on a deployed service than one process can make; judged as a load check is."""
    from shipway import load, results

    site = _site(env, loadcheck={"users": users, "seconds": seconds, "rate": rate})
    count = _number(workers, "--workers", least=1, most=500)
    report = load.loadtest(site, url=url or None, workers=count, in_cluster=in_cluster)
    _print(results.report_text(report), results.report_facts(report), as_json=json)


# -- the pipeline ------------------------------------------------------------------------


@command
def build(
    _c: Context,
    env: str = "",
    model: str = "",
    again: bool = False,
    allow_downgrade: bool = False,
    json: bool = False,
) -> None:
    """Test, resolve the model, compose the image, push it."""
    from shipway import flow

    version = _number(model, "--model")
    built = flow.build(_site(env), version=version, again=again, allow_downgrade=allow_downgrade)
    _print(built.text(), built.facts(), as_json=json)


@command
def deploy(
    _c: Context,
    digest: str = "",
    env: str = "",
    wait: bool = False,
    force: bool = False,
    allow_downgrade: bool = False,
    json: bool = False,
) -> None:
    """Roll out the newest image that was built from a passing suite."""
    from shipway import flow

    wanted = _digest(digest) if digest else None
    deployed = flow.deploy(_site(env), wanted, wait=wait, force=force, allow_downgrade=allow_downgrade)
    _print(deployed.text(), deployed.facts(), as_json=json)


@command
def release(
    _c: Context,
    env: str = "",
    model: str = "",
    again: bool = False,
    wait: bool = False,
    force: bool = False,
    allow_downgrade: bool = False,
    json: bool = False,
) -> None:
    """Build this commit and deploy it: from the test suite to users, checked."""
    from shipway import flow

    version = _number(model, "--model")
    deployed = flow.release(
        _site(env), version=version, again=again, wait=wait, force=force, allow_downgrade=allow_downgrade
    )
    _print(deployed.text(), deployed.facts(), as_json=json)


# -- looking and going back --------------------------------------------------------------


@command
def status(_c: Context, env: str = "", json: bool = False) -> None:
    """Say what is serving, since when, and whether it is healthy."""
    from shipway import flow

    found = flow.status(_site(env))
    _print(found.text(), found.facts(), as_json=json)


@command
def history(_c: Context, env: str = "", json: bool = False) -> None:
    """List every attempt to change what is serving, newest first."""
    from shipway import documents, flow, results

    records = flow.history(_site(env))
    _print(
        "\n".join(map(results.record_line, records)) or "nothing was tried here yet",
        [documents.plain(record) for record in records],
        as_json=json,
    )


@command
def show_image(_c: Context, ref: str = "", env: str = "", json: bool = False) -> None:
    """Say what is in an image, how it came about, and who pushed it, without pulling it."""
    from shipway import upkeep

    shown = upkeep.show(_site(env), ref)
    _print(shown.text(), shown.facts(), as_json=json)


@command
def prune(_c: Context, apply: bool = False, env: str = "", json: bool = False) -> None:
    """Say which images no environment needs any more; with --apply, delete them."""
    from shipway import upkeep

    cleared = upkeep.clear(_site(env), apply=apply)
    _print(cleared.text(), cleared.facts(), as_json=json)


@command
def rollback(_c: Context, only: str = "", env: str = "", wait: bool = False, json: bool = False) -> None:
    """Go back to the version before this one: whole, or its model or its code alone."""
    from shipway import flow

    parts: dict[str, flow.Only | None] = {"": None, "model": "model", "code": "code"}
    if only not in parts:
        raise ConfigError(f"--only {only}: takes model or code", advice="leave it out to go back with both")
    deployed = flow.rollback(_site(env), only=parts[only], wait=wait)
    _print(deployed.text(), deployed.facts(), as_json=json)


@command
def plan(_c: Context, env: str = "", model: str = "", json: bool = False) -> None:
    """Say what a release would move, in bytes, and what it would go back to; change nothing."""
    from shipway import flow

    planned = flow.plan(_site(env), version=_number(model, "--model"))
    _print(planned.text(), planned.facts(), as_json=json)


@command
def doctor(_c: Context, env: str = "", json: bool = False) -> None:
    """Look at everything that a release needs, before one is under way."""
    from shipway import doctor, documents

    findings = doctor.examine(_site(env))
    _print("\n".join(map(str, findings)), [documents.plain(finding) for finding in findings], as_json=json)
    doctor.require_all_well(findings)


@command
def config(_c: Context, env: str = "", json: bool = False) -> None:
    """Print every setting in force, and where its value comes from."""
    from shipway import results

    rows = [{"key": key, "value": value, "source": source} for key, value, source in _site(env).loaded.rows()]
    _print(results.setting_lines(rows), rows, as_json=json)


@command
def stop(_c: Context, env: str = "", wait: bool = False, json: bool = False) -> None:
    """End what serves in the environment, here or in its cluster; its requests are finished first."""
    from shipway import documents, flow

    site = _site(env)
    stopped = flow.stop(site, wait=wait)
    _print(
        f"stopped: {stopped}" if stopped else f"nothing served in {site.environment}",
        {"environment": site.environment, "stopped": documents.plain(stopped) if stopped else None},
        as_json=json,
    )


@command
def logs(_c: Context, env: str = "", json: bool = False) -> None:
    """Say where the logs are on this machine; of a cluster, print the last lines of every replica."""
    where = _site(env).target.logs()
    _print(where, {"logs": where}, as_json=json)


@command
def run(_c: Context, port: str = "", env: str = "") -> None:
    """Run the service in the foreground, from the checkout as it stands, for development."""
    from shipway import flow

    flow.run_here(_site(env), port=_number(port, "--port", least=1, most=65_535))


# -- the data scientists' side -----------------------------------------------------------


@command
def publish(
    _c: Context,
    folder: str,
    name: str = "",
    metric: list[str] = [],  # noqa: B006 - Invoke's way to say that a flag may stand often; never changed
    alias: list[str] = [],  # noqa: B006 - as above
    store: str = "",
    env: str = "",
    json: bool = False,
) -> None:
    """Publish a folder as the model's next version; its golden cases are asked first."""
    from shipway import models, results

    site, metrics = _site(env, model={"name": name, "store": store}), _metrics(metric)
    published = models.publish(site, Path(folder), metrics=metrics, aliases=alias)
    _print(results.published_text(published), results.published_facts(published), as_json=json)


@command
def list_(_c: Context, name: str = "", most: str = "20", store: str = "", env: str = "", json: bool = False) -> None:
    """List the model's newest versions, and the aliases that name them."""
    from shipway import results

    site = _site(env, model={"name": name, "store": store})
    listed = results.model_rows(site.catalogue, site.settings.model.name, most=_number(most, "--most"))
    model = site.settings.model
    _print(results.model_lines(listed) or f"{model.store} has no version of {model.name} to list", listed, as_json=json)


@command
def show(
    _c: Context, version: str = "latest", name: str = "", store: str = "", env: str = "", json: bool = False
) -> None:
    """Show a version: its files, inputs, outputs, metrics, golden cases, and who published it."""
    from shipway import documents, results

    site = _site(env, model={"name": name, "store": store})
    shown = site.catalogue.show(site.settings.model.name, _version(version))
    signers = [str(key) for key in site.catalogue.signers(shown.name, shown.version)]
    facts = {**documents.plain(shown), "signers": signers}
    _print(results.model_text(shown, signers=signers), facts, as_json=json)


@command
def promote(
    _c: Context,
    version: str,
    target: str,
    why: str = "",
    expected: str = "",
    name: str = "",
    store: str = "",
    env: str = "",
    json: bool = False,
) -> None:
    """Move an alias to a version: invoke model.promote 7 production --why "passed the review"."""
    from shipway import documents, models, results

    site = _site(env, model={"name": name, "store": store})
    moved = models.promote(
        site, _number(version, "VERSION") or 0, target, why=why, expected=_number(expected, "--expected")
    )
    _print(
        results.move_line(moved) if moved else "nothing to do: it is there already",
        documents.plain(moved) if moved else None,
        as_json=json,
    )


@command
def pull(
    _c: Context,
    into: str,
    version: str = "latest",
    name: str = "",
    store: str = "",
    env: str = "",
    json: bool = False,
) -> None:
    """Fetch a version's files, verified, into a new folder."""
    import shutil

    destination = Path(into)
    if destination.exists():
        raise ConfigError(f"{destination.absolute()} exists already", advice="name a folder that does not")
    site = _site(env, model={"name": name, "store": store})
    model = site.catalogue.resolve(site.settings.model.name, _version(version))
    found = site.catalogue.pull(model, cache=site.cache, tell=site.tell)
    try:
        for file in model.files:
            (destination / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found / file.path, destination / file.path)  # without its rights: the cache's is read-only
    except BaseException as error:
        shutil.rmtree(destination, ignore_errors=True)
        if isinstance(error, OSError):
            raise MachineRefused(f"{error.filename2 or error.filename}: {error.strerror}") from error
        raise
    _print(into, {"folder": into, "name": model.name, "version": model.version}, as_json=json)


@command
def moves(_c: Context, name: str = "", store: str = "", env: str = "", json: bool = False) -> None:
    """List who moved which alias from what to what, when and why, oldest first."""
    from shipway import documents, results

    site = _site(env, model={"name": name, "store": store})
    found = site.catalogue.history(site.settings.model.name)
    lines = "\n".join(map(results.move_line, found)) or "no alias was moved yet"
    _print(lines, [documents.plain(move) for move in found], as_json=json)


@command
def verify(
    _c: Context,
    version: str = "latest",
    run: bool = False,
    name: str = "",
    store: str = "",
    env: str = "",
    json: bool = False,
) -> None:
    """Hash every file of a version as the store sends it, and check its signature; --run asks its golden cases."""
    from shipway import models, results

    verified = models.verify(_site(env, model={"name": name, "store": store}), _version(version), run=run)
    _print(results.verified_text(verified), results.verified_facts(verified), as_json=json)


@command
def diff(
    _c: Context, before: str, after: str, name: str = "", store: str = "", env: str = "", json: bool = False
) -> None:
    """Compare two versions, and how they answer each other's golden cases: invoke model.diff 6 7."""
    from shipway import models, results

    site = _site(env, model={"name": name, "store": store})
    compared = models.compare(site, _version(before), _version(after))
    _print(results.compared_text(compared), results.compared_facts(compared), as_json=json)


@command
def copy(
    _c: Context,
    to: str,
    version: list[str] = [],  # noqa: B006 - Invoke's way to say that a flag may stand often; never changed
    alias: list[str] = [],  # noqa: B006 - as above
    name: str = "",
    store: str = "",
    env: str = "",
    json: bool = False,
) -> None:
    """Copy versions (default: all) to another store, verified and with their signatures; run again after a cut."""
    from shipway import models, results

    site = _site(env, model={"name": name, "store": store})
    copied = models.copy(site, to, versions=[_version(each) for each in version], aliases=alias)
    _print(results.copied_text(copied, to), results.copied_facts(copied, to), as_json=json)


@command
def clean(
    _c: Context,
    apply: bool = False,
    days: str = "30",
    name: str = "",
    store: str = "",
    env: str = "",
    json: bool = False,
) -> None:
    """Say which versions and files of the model nobody needs any more; with --apply, delete them."""
    from shipway import models, results

    site = _site(env, model={"name": name, "store": store})
    swept = models.clean(site, days=_number(days, "--days") or 0, apply=apply)
    _print(results.swept_text(swept), results.swept_facts(swept), as_json=json)


@command
def keygen(_c: Context, file: str, json: bool = False) -> None:
    """Make a key to sign models with: the private half goes into FILE, the public half is printed."""
    from shipway import models

    path = Path(file).expanduser()
    public = models.keygen(path)
    _print(public, {"public_key": public, "file": str(path)}, as_json=json)


def namespace() -> Collection:
    """Return all tasks, for a `tasks.py`; the process then collects garbage seldom, and none at its end."""
    gc.set_threshold(_COLLECTED_EVERY)
    atexit.register(gc.freeze)  # looking through all that was imported, to free it, took longer than to import it
    top = Collection(
        *(test, push, rollout, loadcheck, loadtest),
        *(build, deploy, release),
        *(status, history, rollback, prune, plan, doctor, config, stop, logs, run),
    )
    images = Collection("image")
    images.add_task(image, name="compose", default=True)
    images.add_task(show_image, name="show")
    top.add_collection(images)
    models = Collection("model", publish, show, promote, pull, verify, diff, copy, keygen)
    models.add_task(list_, name="list")
    models.add_task(clean, name="gc")
    models.add_task(moves, name="history")
    top.add_collection(models)
    return top


# -- parsing and printing ----------------------------------------------------------------


def _site(environment: str, **flags: dict[str, str]) -> Site:
    from shipway.site import Site

    given = {table: {key: text for key, text in values.items() if text} for table, values in flags.items()}
    site = Site.open(Path.cwd(), environment=environment or None, environ=os.environ, flags=given)
    _SITES.append(site)
    return site


def _number(text: str, flag: str, *, least: int = 0, most: int = 999_999_999) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        span = f"from {least} to {most}" if least else f"up to {most}"
        raise ConfigError(f"{flag} {text}: takes a whole number {span}", advice=f"for example {flag} 7")
    return int(text)


def _version(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text


def _digest(text: str) -> Any:
    from shipway.artifacts import Digest

    try:
        return Digest(text)
    except ValueError as error:
        raise ConfigError(str(error), advice="invoke history --json lists the digests that served") from error


def _metrics(texts: list[str]) -> dict[str, float]:
    metrics = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            metrics[name] = float(value)
        except ValueError as error:
            raise ConfigError(f"--metric {text}: takes NAME=NUMBER", advice="--metric accuracy=0.91") from error
    if "" in metrics:
        raise ConfigError("--metric takes NAME=NUMBER, and a name is lacking", advice="--metric accuracy=0.91")
    return metrics


def _print(text: str, facts: Any, *, as_json: bool) -> None:
    from shipway.console import Console

    if as_json:
        Console().result_json(facts)
    else:
        Console().result(text)
