"""MoR against what one would do instead.

Without options the headline: every seed of `params.yaml` and the methods of the headline table. What was measured
before is not measured again; an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from benchmarks.catalogue import DEFAULT, Federation, federations, headline_methods, recipes
from mor.config import Params, load_params
from mor.errors import ConfigError
from tasks.project import paths

SEVERAL = ("--seeds", "--methods", "--settings")  # take one value or more: `--seeds 0 1 2`


def spread(words: Sequence[str], options: Collection[str] = SEVERAL) -> list[str]:
    """``--seeds 0 1`` as Typer reads it, ``--seeds 0 --seeds 1``: an option's values go on to the next option."""
    spelt: list[str] = []
    option, repeated = "", False
    for word in words:
        if word.startswith("-") and not word[1:].isdigit():
            option, repeated = (word if word in options else ""), False
            spelt.append(word)
        else:
            spelt += [option, word] if repeated else [word]
            repeated = bool(option)
    return spelt


class SeveralValues(TyperCommand):
    """A command whose options may take several values, which Typer itself does not know."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words as ``spread`` spells them."""
        return super().parse_args(ctx, spread(args))


def command_settings() -> dict[str, Any]:
    """For the command line: several values an option, and the names of methods and settings, which depend on the clients."""
    try:
        methods, settings = known(load_params(paths.PARAMS))
        said = f"Methods: {', '.join(methods)}.\n\nSettings: {', '.join(settings)}."
    except ConfigError as error:
        said = str(error)
    return {"cls": SeveralValues, "epilog": said}


def known(params: Params) -> tuple[list[str], dict[str, Federation]]:
    """Names of all methods that there are with these clients, and all settings by name."""
    return list(recipes(params.clients)), federations(params.clients, params.base)


def check(kind: str, asked: Iterable[str], there: Collection[str]) -> None:
    """Raises ``BadParameter`` for a name that is not ``there``."""
    for name in asked:
        if name not in there:
            raise typer.BadParameter(f"{name!r} is no {kind}; expected {', '.join(there)}")


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
    all_methods, all_settings = known(params)
    check("method", methods or (), all_methods)
    check("setting", settings or (), all_settings)
    from benchmarks.plan import Case
    from benchmarks.run import measure_cases, report_results

    plan, methods = params.benchmark, methods or headline_methods(params.clients)
    if search:
        cases = [Case(DEFAULT, plan.search_seed, method, f, True) for method in methods for f in plan.search_factors]
    else:
        seeds = (plan.seeds if seeds is None else seeds)[: 1 if quick else None]
        cases = [Case(name, seed, method) for seed in seeds for name in settings or [DEFAULT] for method in methods]
    report_results(all_settings, measure_cases(params, cases, jobs))
