"""The `sarm2` command: puts the sub-commands together and turns errors into one readable line."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from sarm2_cli.adapt import adapt
from sarm2_cli.benchmark import benchmark
from sarm2_cli.demo import demo
from sarm2_cli.doctor import doctor
from sarm2_cli.evaluate import evaluate
from sarm2_cli.record import record
from sarm2_cli.relabel import relabel
from sarm2_cli.score import score
from sarm2_cli.serve import serve
from sarm2_cli.spiral import spiral
from sarm2_cli.train import train
from sarm2_client.errors import Sarm2Error
from sarm2_rollouts.with_parent import end_with_parent

app = typer.Typer(
    name="sarm2",
    help="Online reward scoring for robots: dense, calibrated progress from camera frames, live.\n\n"
    "Start with `sarm2 demo`; check a machine with `sarm2 doctor`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (serve, demo, record, train, evaluate, benchmark, score, relabel, adapt, doctor):
    app.command()(command)
app.add_typer(spiral, name="spiral")


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a check failed, 2 wrong input, 130 interrupted."""
    end_with_parent()
    try:
        app()
    except Sarm2Error as error:
        tell(error.code, error.message)
        sys.exit(2)
    except OSError as error:  # a full disk, a file that may not be read: the machine's word says enough
        tell("system", what_failed(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def tell(code: str, message: str) -> None:
    """One line for people, on stderr."""
    Console(stderr=True).print(f"[red]error[/red] ({code}): {escape(message)}", highlight=False)


def what_failed(error: OSError) -> str:
    """The path, where the error has one, what is wrong with it, and what to do."""
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    what = error.strerror or str(error) or type(error).__name__
    return f"{' -> '.join(paths)}{': ' if paths else ''}{what}; mend that and try again"


if __name__ == "__main__":
    main()
