"""The command line: parse, call, print. What a verb does is elsewhere."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import typer

from evomerge.cli.again import estimate, replay
from evomerge.cli.check import plan, validate
from evomerge.cli.compare import compare
from evomerge.cli.dashboard import dashboard
from evomerge.cli.export import export
from evomerge.cli.init import init, schema
from evomerge.cli.look_up import doctor, operators, searchers, spaces
from evomerge.cli.models import anatomy, merge, score, zoo
from evomerge.cli.report import report
from evomerge.cli.search import digest, front, resume, run
from evomerge.cli.sweep import sweep
from evomerge.cli.watch import status
from evomerge.errors import (
    CandidateError,
    ConfigurationError,
    EvomergeError,
    Interrupted,
    ModelError,
    Problem,
)
from evomerge.files import NO_SPACE, disk_full
from evomerge.signals import signals

app = typer.Typer(
    name="evomerge",
    help="Search for the best way to merge fine-tuned models.\n\n"
    "Start with `evomerge run quickstart`: it trains a family of tiny models, searches for a merge "
    "of them, and says whether the search was worth it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS: dict[str, tuple[Callable[..., None], ...]] = {  # in the order of the help
    "Search": (init, validate, plan, run, resume, sweep),
    "Look at a run": (status, dashboard, front, report, compare, digest),
    "Take models home": (export, merge, score),
    "Ask a run again": (estimate, replay),
    "What there is": (operators, spaces, searchers, schema, anatomy, doctor, zoo),
}
for panel, verbs in VERBS.items():
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)


def main() -> None:
    """Run a verb; an error of the user's becomes text and an exit code, never a traceback."""
    try:
        with signals():
            # It ends the process itself; what is wrong with the arguments is told there.
            app(prog_name="evomerge")
    except Interrupted as error:
        sys.exit(error.exit_code)
    except EvomergeError as error:
        sys.exit(_complain(error))
    except CandidateError as error:
        sys.exit(_complain(ModelError(str(error))))
    except OSError as error:  # a folder that is a file, or may not be written
        sys.exit(_complain(_of_the_system(error)))


def _of_the_system(error: OSError) -> EvomergeError:
    if error.errno in NO_SPACE:
        return disk_full(Path(error.filename or tempfile.gettempdir()))
    return ConfigurationError(Problem(str(error.filename or ""), error.strerror or str(error)))


def _complain(error: EvomergeError) -> int:
    problems = error.problems
    if len(problems) > 1:
        print(f"evomerge: {len(problems)} problems", file=sys.stderr)
    for problem in problems:
        print(f"evomerge: {problem}" if len(problems) == 1 else f"  {problem}", file=sys.stderr)
    return error.exit_code
