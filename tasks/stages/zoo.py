"""Train the model zoo; its folders are committed, so this runs only when asked for."""

from __future__ import annotations

from mor.config import Zoo
from mor.fedvqa.zoo import train_zoo_model
from mor.files import move_in
from tasks.project import paths
from tasks.project.checkpoints import resumable
from tasks.project.decorators import task
from tasks.tracking.runs import stage_run


@task
def train_zoo(settings: Zoo) -> None:
    """Every model of the zoo from scratch; models already finished in an interrupted run are kept."""
    folder = resumable("zoo", settings.model_dump(), [])
    with stage_run("zoo", {"zoo": settings}) as run:
        for name, own in settings.models.items():
            fresh = folder / "done" / name
            if not fresh.exists():
                model, processor, accuracy = train_zoo_model(own, settings, folder / name)
                partial = folder / "partial"
                model.save_pretrained(str(partial))
                processor.save_pretrained(str(partial))
                move_in(partial, fresh)
                if accuracy is not None:
                    run.metrics({f"zoo.{name}.vision_accuracy": accuracy})
        for name in settings.models:
            move_in(folder / "done" / name, paths.zoo_folder(name))
