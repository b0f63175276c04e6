"""What a client wrote stays in its own folders: a word planted everywhere is looked for in all that others read."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from flows import nightly
from mor.config import Params
from mor.data.pictures import png_bytes
from mor.data.schema import DataError, Preference, load_images
from mor.errors import ConfigError, UserError
from tasks.nights.deliveries import archived_deliveries
from tasks.nights.git import output_of
from tasks.project import decorators, paths
from tasks.project import dvc as execution
from tasks.reports.images import thumbnail
from tasks.stages import validate as validation
from tasks.tracking import runs as tracking
from tasks.tracking import store
from tests.tasks.nights.delivering import (
    FOREIGN_WARNINGS,
    HAD,
    INBOX,
    PREFERENCES,
    Annotator,
    colour,
    drop,
    pair,
    picture,
    swapped,
)

pytestmark = [*FOREIGN_WARNINGS, pytest.mark.filterwarnings("ignore::ResourceWarning")]
CORE = "q7geheimnis"
WORD = f"{CORE} <b>é&[/]"  # how ever it is escaped, CORE stays
OWN = ("data", "inbox", "models", ".dvc/cache", "params.yaml")  # what is a client's own, and where DVC stores it


def forms(core: str) -> Iterator[bytes]:
    """The word as it may look in a file: plain, as UTF-16, and as base64 at each of the three alignments."""
    plain = core.encode()
    yield from (plain, core.upper().encode(), core.encode("utf-16-le"), core.encode("utf-16-be"))
    for shift in range(3):
        yield base64.b64encode(b"\0" * shift + plain)[(0, 2, 3)[shift] : -4]


def found_in(content: bytes) -> bool:
    return any(form in content or form in content.lower() for form in forms(CORE))


def leaks(root: Path = Path()) -> list[str]:
    """Files that others read and that hold the word, in their name or inside."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.as_posix().startswith(OWN)]
    return [str(path) for path in files if found_in(str(path).encode()) or found_in(path.read_bytes())]


def speaking_picture(path: Path, number: int) -> None:
    """A picture that no other number has, with the word in all its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x010E] = WORD
    notes = PngInfo()
    notes.add_text("Comment", WORD)
    notes.add_itxt("Author", WORD)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + WORD.encode()
    options: dict[str, Any] = {"pnginfo": notes} if path.suffix == ".png" else {"comment": WORD.encode(), "quality": 95}
    Image.new("RGB", (16, 16), colour(number)).save(path, exif=exif, icc_profile=profile, **options)


def secret(number: int, **changes: Any) -> dict[str, Any]:
    """A row with the word in each of its texts."""
    row = {"id": f"{WORD} {number}", "image": f"images/{CORE} {number}.png", "prompt": f"What is it? {WORD}"}
    row |= {"chosen": f"2 {WORD}", "rejected": f"3 {WORD}", "category": f"{WORD} {number % 2}", "kind": f"k {WORD}"}
    return row | changes


BAD = [  # one row of every fault
    f'{{"id": "{CORE}", "image"',
    {key: value for key, value in secret(71).items() if key != "chosen"},
    secret(72, prompt=[WORD]),
    secret(73, image=f"{CORE}/none.png"),
    secret(74, image=f"../{CORE}.png"),
    secret(75, image=f"images/{CORE} broken.png"),
    secret(76, rejected=f"2 {WORD}"),
    secret(77, id="a5"),
    secret(78, id=f"{WORD} 79"),
    secret(79),
    secret(80, prompt=WORD * 500),
    secret(81, image=f"images/{CORE} small.png"),
    secret(82, image=f"images/{CORE} public.png"),
]


NEW = Path("inbox/radiology")  # who has nothing yet, so that nothing drifts


def deliver(name: str, rows: list[Any], first: int, count: int, inbox: Path = INBOX) -> None:
    for number in range(first, first + count):
        speaking_picture(inbox / f"images/{CORE} {number}.png", number)
    drop(f"{CORE} [red {name}", rows, [], inbox)


@pytest.fixture
def project(params: Params, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """The project in git and DVC, with a store of its own for MLflow."""
    shutil.copy(Path(__file__).parents[3] / ".gitignore", ".")
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"], ["git", "add", "-A"]):
        subprocess.run(command, check=True)
    Path("dvc.yaml").write_text("stages: {}\n")
    tracking.mlflow_client.cache_clear()
    store.experiment.cache_clear()
    yield params
    tracking.mlflow_client.cache_clear()
    store.experiment.cache_clear()


def git_says() -> bytes:
    command = ["git", "log", "--all", "--patch", "--format=fuller", "--decorate"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def test_a_night_tells_nothing_that_a_client_wrote(
    project: Params, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Deliveries that are merged with bad rows, held, refused and known; the page, MLflow, the webhook and git."""
    sent: list[dict[str, str]] = []
    settings = project.model_copy(update={"nightly": project.nightly.model_copy(update={"push": False})})
    monkeypatch.setattr(nightly, "load_params", lambda *_: settings)
    monkeypatch.setattr("tasks.nights.journal.notify", sent.append)
    monkeypatch.setattr("tasks.tracking.registry.restore_aliases", lambda: None)
    monkeypatch.setattr(nightly, "make_and_judge", lambda night, params: setattr(night, "ending", "Promoted"))
    monkeypatch.setattr("tasks.nights.intake.last_reward_model", lambda client: Annotator())
    deliver("merged", [*(secret(number) for number in range(60, 64)), *BAD], 60, 24, NEW)
    picture(NEW / f"images/{CORE} public.png", 250)
    Image.new("RGB", (4, 4)).save(NEW / f"images/{CORE} small.png")
    (NEW / f"images/{CORE} broken.png").write_text(WORD)
    deliver("poison", [row | {"category": WORD} for row in swapped(30, 10)], 30, 0)
    for number in range(30, 40):
        picture(INBOX / f"images/{number}.png", number)
    deliver("link", [secret(90)], 90, 1)
    (INBOX / f"images/{CORE} 90.png").rename(INBOX / f"{CORE}.was")
    (INBOX / f"images/{CORE} 90.png").symlink_to(Path(INBOX / f"{CORE}.was").resolve())
    drop(f"{CORE} stray", [pair(1)], [], Path("inbox") / f"{CORE} nobody")
    night = nightly.run_night("2026-01-02")
    assert [delivery.state for delivery in night.deliveries] == ["held", "merged", "refused", "refused"]
    merged = next(delivery for delivery in archived_deliveries() if delivery.state == "merged")
    assert found_in((merged.folder / "quarantine.jsonl").read_bytes())  # the client's own record has all of it
    assert (merged.accepted, merged.quarantined) == (5, 12)  # the id a5 is another client's
    assert leaks() == []
    assert not found_in("".join(capfd.readouterr()).encode())
    assert not found_in(json.dumps(sent).encode())
    assert not found_in(git_says())
    (INBOX / f"images/{CORE} 90.png").unlink()
    monkeypatch.setattr(nightly, "make_and_judge", lambda *_: (_ for _ in ()).throw(ValueError(f"cannot read {WORD}")))
    deliver("later", [secret(91)], 91, 1, NEW)
    with pytest.raises(ValueError, match=CORE):
        nightly.run_night("2026-01-03")
    assert [event["state"] for event in sent][-1] == "Failed"
    assert sent[-1]["message"].startswith("ValueError at tests/tasks/nights/test_privacy.py:")
    assert leaks() == []
    assert not found_in(json.dumps(sent).encode() + "".join(capfd.readouterr()).encode() + git_says())


@pytest.mark.parametrize("mode", ["fail", "quarantine"])
def test_validation_tells_nothing_that_a_client_wrote(
    project: Params, mode: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = paths.client_folder("documents")
    for number in range(60, 84):
        speaking_picture(folder / f"images/{CORE} {number}.png", number)
    (folder / f"images/{CORE} broken.png").write_text(WORD)
    rows = [row if isinstance(row, str) else json.dumps(row) for row in [secret(60), *BAD]]
    with PREFERENCES.open("a") as file:
        file.write("".join(f"{row}\n" for row in rows))
    settings = project.validation.model_copy(update={"on_bad_rows": mode})
    message = ""
    try:
        validation.validate_data(["documents"], settings)
    except DataError as error:
        message = str(error)
    assert ("the pipeline stops here" in message) == (mode == "fail")
    aside = paths.QUARANTINE / "clients/documents.jsonl"
    assert (aside.exists() and found_in(aside.read_bytes())) == (mode == "quarantine")
    assert not found_in(message.encode() + "".join(capfd.readouterr()).encode())
    assert leaks() == []
    assert f"{HAD + 2}" in message or mode == "quarantine"  # the line, to find it by


def test_data_docs_run_nothing_and_load_nothing(project: Params) -> None:
    with PREFERENCES.open("a") as file:
        file.write(json.dumps(pair(3, id="<script>alert(1)</script>", image="images/<img src=x onerror=alert(1)>.png")) + "\n")
    validation.check(["documents"], project.validation)
    pages = list(paths.VALIDATION_SITE.rglob("*.html"))
    assert len(pages) > 4
    for page in pages:
        text = page.read_text().lower()
        assert '<meta http-equiv="content-security-policy" content="default-src \'none\'; img-src data:;' in text
        for banned in ("<script", "<link", "<img", "http://", "https://", "onclick", "onerror", "javascript:", "alert("):
            assert banned not in text, f"{page}: {banned}"
    assert not [path for path in paths.VALIDATION_SITE.rglob("*") if path.is_file() and path.suffix != ".html"]
    index = (paths.VALIDATION_SITE / "index.html").read_text()
    assert "clients.documents" in index


@pytest.mark.parametrize("raised", [ValueError(WORD), KeyError(WORD), OSError(2, "gone", f"/x/{WORD}.png")])
def test_an_error_of_a_library_is_recorded_by_kind_and_place(project: Params, raised: Exception) -> None:
    with pytest.raises(type(raised)), tracking.stage_run("reward@documents", {}) as run:
        raise raised
    said = tracking.mlflow_client().get_run(run.run_id).data.tags["mor.error"]
    assert said.startswith(f"{type(raised).__name__} at tests/tasks/nights/test_privacy.py:")
    assert leaks() == []


def test_a_missing_picture_is_told_by_its_row_and_not_by_its_name(params: Params) -> None:
    row = Preference.model_validate(secret(99))
    with pytest.raises(DataError, match=r"the picture of row 1 of 1 cannot be read: FileNotFoundError") as told:
        load_images(paths.client_folder("documents"), [row])
    assert not found_in(str(told.value).encode())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_that_is_shown_or_sent_is_its_pixels_alone(params: Params, suffix: str) -> None:
    name = f"images/speaking.{suffix}"
    speaking_picture(paths.EVAL / name, 5)
    assert found_in((paths.EVAL / name).read_bytes())
    row = Preference.model_validate(pair(5, image=name))
    for shown in (png_bytes(load_images(paths.EVAL, [row])[0]), thumbnail(paths.EVAL / name)):
        with Image.open(BytesIO(shown)) as image:
            image.load()
            assert image.info == {}  # a colour profile would be there, packed so that the word is not seen
        assert not found_in(shown)


def test_prefect_learns_of_a_foreign_error_its_kind_and_place_and_of_ours_the_text() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(decorators.WithheldError, match=r"^ValueError at tests/tasks/nights/test_privacy.py:\d+; ") as told:
        decorators._discreet(fail)(ValueError(WORD))
    assert not found_in(str(told.value).encode())
    assert told.value.__suppress_context__
    with pytest.raises(ConfigError, match="seed: expected 0"):
        decorators._discreet(fail)(ConfigError("seed: expected 0"))


def test_a_stage_that_fails_tells_the_night_its_error_and_none_of_its_output(project: Params) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\nfrom tasks.project.command_line import main\n"
    say = f"    print({WORD!r})\n"
    for name, error in (
        ("ours", "__import__('mor.errors').errors.UserError('line 3 is bad')"),
        ("foreign", f"ValueError({WORD!r})"),
    ):
        Path(f"{name}.py").write_text(f"{code}def stage():\n{say}    raise {error}\nmain(stage)\n")
    Path("dvc.yaml").write_text("stages: {ours: {cmd: python ours.py}, foreign: {cmd: python foreign.py}}\n")
    for name, said in (("ours", "ours failed: line 3 is bad; its log is"), ("foreign", "foreign failed: ValueError")):
        with pytest.raises(execution.StageFailed, match=said) as told:
            execution.run_stage(name, 60)
        assert not found_in(str(told.value).encode())


def test_a_command_that_fails_tells_no_names_of_clients_files() -> None:
    script = f"echo \"ERROR: file 'data/clients/a/images/{CORE}.png' is gone\" >&2; echo 'no route to host' >&2; exit 1"
    with pytest.raises(UserError, match="no route to host") as told:
        output_of("sh", "-c", script.replace(CORE, "$0"), CORE)
    assert CORE not in str(told.value).split("failed:")[1]
