"""MoR against what one would do instead.

Without options the headline: every seed of `params.yaml` and the methods of the headline table. What was measured
before is not measured again; an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from benchmarks.catalogue import DEFAULT, federations, headline_methods, recipes
from mor.config import Params, load_params
from mor.errors import ConfigError
from tasks.project import paths

if TYPE_CHECKING:
    from benchmarks.plan import Case

SEVERAL = ("--seeds", "--methods", "--settings")  # take one value or more: `--seeds 0 1 2`


def spread(words: Sequence[str], options: Collection[str] = SEVERAL) -> list[str]:
    """``--seeds 0 1`` as Typer reads it, ``--seeds 0 --seeds 1``: an option's values go on to the next option."""
    spelt: list[str] = []
    option, values = "", 0
    for word in words:
        if word.startswith("-") and not word[1:].isdigit():
            option, values = (word if word in options else ""), 0
            spelt.append(word)
        elif option:
            spelt += [word] if values == 0 else [option, word]
            values += 1
        else:
            spelt.append(word)
    return spelt


class SeveralValues(TyperCommand):
    """A command whose options may take several values, which Typer itself does not know."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words as ``spread`` spells them."""
        return super().parse_args(ctx, spread(args))


def command_settings() -> dict[str, Any]:
    """For the command line: several values an option, and the names of methods and settings below the help."""
    return {"cls": SeveralValues, "epilog": names()}


def benchmark(
    quick: Annotated[bool, typer.Option("--quick", help="the first seed alone")] = False,
    seeds: Annotated[list[int] | None, typer.Option(help="instead of those in params.yaml; one or more")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="one or more of those below; by default the headline's")] = None,
    settings: Annotated[list[str] | None, typer.Option(help="one or more of those below")] = None,
    search: Annotated[bool, typer.Option("--search", help="search the methods' learning rates on the search seed")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="processes at a time; the cores are shared out among them")] = 2,
) -> None:
    """Measure what is missing, then write the report."""
    params = load_params(paths.PARAMS)
    for kind, asked, there in zip(("method", "setting"), (methods, settings), known(params), strict=True):
        for name in asked or ():
            if name not in there:
                raise typer.BadParameter(f"{name!r} is no {kind}; expected {', '.join(there)}")
    from benchmarks.run import measure_cases, report_results

    asked_for = cases(params, quick, seeds, methods or headline_methods(params.clients), settings, search)
    report_results(params, measure_cases(params, asked_for, jobs))


def cases(
    params: Params,
    quick: bool,
    seeds: Sequence[int] | None,
    methods: Sequence[str],
    settings: Sequence[str] | None,
    search: bool,
) -> list[Case]:
    """The results that are asked for, seed by seed."""
    from benchmarks.plan import Case

    plan = params.benchmark
    if search:
        return [Case(DEFAULT, plan.search_seed, m, f, True) for m in methods for f in plan.search_factors]
    seeds = plan.seeds if seeds is None else seeds
    seeds = seeds[:1] if quick else seeds
    return [Case(setting, seed, method) for seed in seeds for setting in settings or [DEFAULT] for method in methods]


def known(params: Params) -> tuple[list[str], list[str]]:
    """Names of all methods and settings."""
    return list(recipes(params.clients)), list(federations(params.clients, params.base))


def names() -> str:
    """What ``--help`` says of methods and settings, whose names depend on the clients."""
    try:
        there = known(load_params(paths.PARAMS))
    except ConfigError as error:
        return str(error)
    return f"Methods: {', '.join(there[0])}.\n\nSettings: {', '.join(there[1])}."
