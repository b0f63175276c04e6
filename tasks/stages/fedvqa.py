"""Write the embedded data's folders, contact sheet and data card."""

from __future__ import annotations

from rich.console import Console

from mor.config import HELD_OUT, FedVqa
from mor.errors import ConfigError
from mor.fedvqa.render import DOMAINS
from mor.fedvqa.sheet import contact_sheet, data_card
from mor.fedvqa.write import generated_folder, image_digests, is_own_data, write_client, write_evaluation, write_public
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
        folders = {domain: paths.client_folder(domain) for domain in domains}
        rows = dict.fromkeys([*domains, "evaluation"], 0)  # of folders that are written
        answers = write_public(paths.PUBLIC, settings.styles, settings.public, stream(seed, "public"))
        taken = image_digests(paths.PUBLIC)
        for domain in domains:
            if not is_own_data(folders[domain]):
                with generated_folder(folders[domain]) as folder:
                    rows[domain] = write_client(
                        folder, domain, house=settings.styles[domain], pairs=settings.pairs, error_rate=settings.error_rate,
                        answers=answers[domain], taken=taken, rng=stream(seed, "client", domain),
                    )  # fmt: skip
        if not is_own_data(paths.EVAL):
            taken = image_digests(paths.PUBLIC, *folders.values())
            with generated_folder(paths.EVAL) as folder:
                rows["evaluation"] = write_evaluation(
                    folder, settings.styles, questions=settings.questions, pairs=settings.held_out_pairs,
                    taken=taken, rng=stream(seed, "evaluation"),
                )  # fmt: skip
        for name, n in rows.items():
            Console().print(f"fedvqa: {name}: " + (f"{n} rows" if n else "your own data, left alone"))
        paths.REPORTS.mkdir(exist_ok=True)
        contact_sheet(folders, paths.eval_suite(HELD_OUT)).save(paths.CONTACT_SHEET)
        paths.DATA_CARD.write_text(
            data_card(folders, paths.PUBLIC, paths.EVAL, styles=settings.styles, error_rate=settings.error_rate)
        )
        run.artifact(paths.CONTACT_SHEET)
        run.artifact(paths.DATA_CARD)
        run.metrics({f"fedvqa.{name}.rows": float(n) for name, n in rows.items()})
