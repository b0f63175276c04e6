"""Write the embedded benchmark's folders, contact sheet and data card."""

from __future__ import annotations

from rich.console import Console

from mor.config import load_params
from mor.data.benchmark.annotator import HOUSE_STYLE
from mor.data.benchmark.sheet import contact_sheet, data_card
from mor.data.benchmark.write import write_client, write_evaluation, write_folder, write_public
from mor.seeds import stream
from tasks import paths
from tasks.runtime import task
from tasks.tracking import stage_run


@task
def write_benchmark() -> None:
    """Generate every folder that does not hold somebody's own data."""
    params = load_params(paths.PARAMS)
    settings = params.benchmark
    domains = list(HOUSE_STYLE)
    with stage_run("benchmark", {"seed": params.seed, "benchmark": settings}) as run:
        rows = {}
        answers = write_public(paths.PUBLIC, domains, settings.public, stream(params.seed, "public"))
        for domain in domains:
            rows[domain] = write_folder(
                paths.client_folder(domain),
                lambda folder, domain=domain, key=answers[domain]: write_client(  # type: ignore[misc]
                    folder,
                    domain,
                    pairs=settings.pairs,
                    error_rate=settings.error_rate,
                    answers=key,
                    rng=stream(params.seed, "client", domain),
                ),
            )
        rows["evaluation"] = write_folder(
            paths.EVAL,
            lambda folder: write_evaluation(
                folder,
                domains,
                questions=settings.questions,
                pairs=settings.held_out_pairs,
                rng=stream(params.seed, "evaluation"),
            ),
        )
        for name, n in rows.items():
            Console().print(f"benchmark: {name}: " + (f"{n} rows" if n else "your own data, left alone"))
        folders = {domain: paths.client_folder(domain) for domain in domains}
        paths.REPORTS.mkdir(exist_ok=True)
        contact_sheet(folders, paths.eval_suite(paths.HELD_OUT)).save(paths.CONTACT_SHEET)
        paths.DATA_CARD.write_text(data_card(folders, paths.PUBLIC, paths.EVAL, error_rate=settings.error_rate))
        run.artifact(paths.CONTACT_SHEET)
        run.artifact(paths.DATA_CARD)
        run.metrics({f"benchmark.{name}.rows": float(n) for name, n in rows.items()})
