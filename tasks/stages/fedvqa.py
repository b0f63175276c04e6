"""Write the embedded data's folders, contact sheet and data card."""

from __future__ import annotations

from rich.console import Console

from mor.config import HELD_OUT, FedVqa
from mor.errors import ConfigError
from mor.fedvqa.render import DOMAINS
from mor.fedvqa.sheet import contact_sheet, data_card
from mor.fedvqa.write import image_digests, write_client, write_evaluation, write_folder, write_public
from mor.seeds import stream
from tasks.project import paths
from tasks.project.decorators import task
from tasks.tracking.runs import stage_run


@task
def write_fedvqa(seed: int, settings: FedVqa) -> None:
    """Generate every folder that does not hold somebody's own data."""
    domains = list(settings.styles)
    known = [domain for domain in DOMAINS if domain != HELD_OUT]
    if unknown := set(domains) - set(known):
        names = ", ".join(sorted(unknown))
        raise ConfigError(f"{paths.PARAMS}: fedvqa.styles: got {names}; expected domains among {', '.join(known)}")
    with stage_run("fedvqa", {"seed": seed, "fedvqa": settings}) as run:
        rows, folders = {}, {domain: paths.client_folder(domain) for domain in domains}
        answers = write_public(paths.PUBLIC, settings.styles, settings.public, stream(seed, "public"))
        taken = image_digests(paths.PUBLIC)
        for domain in domains:
            rows[domain] = write_folder(
                paths.client_folder(domain),
                lambda folder, domain=domain, key=answers[domain]: write_client(  # type: ignore[misc]
                    folder,
                    domain,
                    house=settings.styles[domain],
                    pairs=settings.pairs,
                    error_rate=settings.error_rate,
                    answers=key,
                    taken=taken,
                    rng=stream(seed, "client", domain),
                ),
            )
        taken = image_digests(paths.PUBLIC, *folders.values())
        rows["evaluation"] = write_folder(
            paths.EVAL,
            lambda folder: write_evaluation(
                folder,
                settings.styles,
                questions=settings.questions,
                pairs=settings.held_out_pairs,
                taken=taken,
                rng=stream(seed, "evaluation"),
            ),
        )
        for name, n in rows.items():
            Console().print(f"fedvqa: {name}: " + (f"{n} rows" if n else "your own data, left alone"))
        paths.REPORTS.mkdir(exist_ok=True)
        contact_sheet(folders, paths.eval_suite(HELD_OUT)).save(paths.CONTACT_SHEET)
        card = data_card(folders, paths.PUBLIC, paths.EVAL, styles=settings.styles, error_rate=settings.error_rate)
        paths.DATA_CARD.write_text(card)
        run.artifact(paths.CONTACT_SHEET)
        run.artifact(paths.DATA_CARD)
        run.metrics({f"fedvqa.{name}.rows": float(n) for name, n in rows.items()})
