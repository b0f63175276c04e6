"""``mor``, the project's one command line: a table of its commands, each of which is imported when it is called."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup


class Command(NamedTuple):
    """A command: the module that has the function of its name, its line in the list, and the part of the list."""

    module: str
    summary: str
    panel: str


RUNS, NIGHTS, OTHER = "Runs", "Nights", "Other"
# Three modules are not named as their command is: the flow `nightly` in flows/nightly.py, whose deployment Prefect keeps, is
# what `night` runs once and `nightly` whenever it is due; flows/zoo.py is the stage that the command `zoo` thaws.
COMMANDS = {
    "run": Command("run", "Bring every stage up to date; further words go to dvc repro.", RUNS),
    "ui": Command("ui", "Show the runs in a browser: MLflow's pages.", RUNS),
    "diff": Command("diff", "Say how two runs or nights differ.", RUNS),
    "benchmark": Command("benchmark", "Measure MoR against other methods.", RUNS),
    "nightly": Command("schedule", "Run a night whenever params.yaml says, until Ctrl-C.", NIGHTS),
    "night": Command("nightly", "Run one night now.", NIGHTS),
    "deliveries": Command("deliveries", "List new data; release or discard what is held.", NIGHTS),
    "predict": Command("predict", "Ask the champion a question about a picture.", NIGHTS),
    "rollback": Command("rollback", "Let the previous champion serve again.", NIGHTS),
    "pin": Command("pin", "Approve a version as the baseline for later nights.", NIGHTS),
    "prune": Command("prune", "Delete what neither champions nor the last nights need.", NIGHTS),
    "nights-demo": Command("nights_demo", "Simulate six nights in a project of their own.", NIGHTS),
    "serve": Command("serve", "Answer for one client over HTTPS, until Ctrl-C.", OTHER),
    "zoo": Command("retrain_zoo", "Train the tiny models again, whose weights are in git.", OTHER),
}


class Lazy(TyperGroup):
    """Lists commands from ``COMMANDS``; imports the one that is called, asked for help or completed."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that ``args`` begin with, as its own module describes it."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and command(str(listed.name)), rest


def command(name: str) -> Any:
    """The command of that name; ``command_settings()`` of its module, if there is one, says what is special about it."""
    from tasks.project import command_line

    module = import_module(f"flows.{COMMANDS[name].module}")
    special: dict[str, Any] = getattr(module, "command_settings", dict)()
    return typer.main.get_command(command_line.command_line(getattr(module, name.replace("-", "_")), **special))


def listed() -> typer.Typer:
    """The command line; its commands are names and summaries until one is called."""
    app = typer.Typer(
        cls=Lazy,
        help="Align one vision-language model with the private preferences of many. Run it in the project's folder.",
        epilog="`mor COMMAND --help` describes a command and its options.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    for name, entry in COMMANDS.items():
        app.command(name, short_help=entry.summary, rich_help_panel=entry.panel)(lambda: None)
    return app


def main() -> None:
    """What the script ``mor`` calls; without a word it lists the commands."""
    listed()(sys.argv[1:] or ["--help"], prog_name="mor")


if __name__ == "__main__":
    main()
