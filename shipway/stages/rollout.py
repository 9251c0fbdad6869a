"""The stage `rollout`: a version becomes what users are served, one provable step after the other.

Reads the target, and returns what it proved. Each function is one step that the flow puts
in order, with the load checks between them; each says what came out, and on failure leaves
what served before untouched.
"""

from __future__ import annotations

import sys
from pathlib import Path

from shipway.artifacts import Image, Version
from shipway.console import Tell
from shipway.errors import GoldenAnswersWrong
from shipway.oci import compose
from shipway.proc import Run
from shipway.targets import Candidate, Target

_ANSWER_S = 30.0
_SHOWN = 10


def start(target: Target, image: Image, tell: Tell, *, as_before: bool = False) -> Candidate:
    """Start the image where users cannot reach it, or, `as_before`, as it was started then; return once it is ready.

    Raises `CandidateFailed` with its last words, or `WrongBuild`.
    """
    candidate = target.start(compose.version(image), image, as_before=as_before)
    tell.say("rollout", f"candidate ready on {candidate.url}")
    return candidate


def ask_golden(url: str, version: Version, golden: Path, tell: Tell) -> None:
    """Play the exchanges of the model in `golden`; raise `GoldenAnswersWrong` that names cases and fields."""
    from shipway import exchanges  # noqa: PLC0415 - not for a command that only builds

    model, cases = version.model, exchanges.load(golden)
    wrong = exchanges.play(url, cases, _ANSWER_S)
    if wrong:
        more = f"\n… and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise GoldenAnswersWrong(
            f"{url} answers otherwise than {model.name} {model.version} promises",
            tail="\n".join(wrong[:_SHOWN]) + more,
        )
    if cases:
        tell.say("rollout", f"golden exchanges answered right: {len(cases)}")
    else:
        tell.warn(f"{model.name} {model.version} has no golden exchanges, so its answers were not checked")


def promote(target: Target, candidate: Candidate, tell: Tell) -> None:
    """Let users meet the candidate's version; raise `PromotionFailed`."""
    target.promote(candidate)
    tell.say("rollout", f"build {candidate.version.build[:12]} answers users")


def settle(target: Target, tell: Tell) -> None:
    """Let the version before finish its requests and end; raise `PromotionFailed`."""
    target.settle()
    tell.say("rollout", "it alone answers users now")


def run_here(image: Image, root: Path, *, port: int, home: Path, proc: Run, tell: Tell) -> None:
    """Run the image, unpacked in `root`, in the foreground on `port`, until it or a signal ends it.

    Raises `AddressTaken`, and `ToolFailed` with its last words when it fails.
    """
    from shipway.targets import launch  # noqa: PLC0415 - as above
    from shipway.targets.daemon import Address, require_free  # noqa: PLC0415 - as above

    require_free(Address(host="127.0.0.1", port=port))
    home.mkdir(parents=True, exist_ok=True)
    ports = {"PORT": port, **dict.fromkeys(compose.service(image).ports, 0)}
    start = launch.start(image.config, root=root, python=sys.executable, ports=ports, home=home, mark="here")
    tell.say("run", f"http://127.0.0.1:{port}, build {image.build}; Ctrl-C ends it")
    proc.run(start.argv, cwd=Path(start.cwd), env=start.env, on_line=lambda line: tell.say("run", line)).check()
