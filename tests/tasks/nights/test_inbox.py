"""Nothing outside the inbox is read or deleted, what is too large is refused, and no name ends a night."""

from __future__ import annotations

import json
import os
import resource
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mor.config import Params, load_params
from mor.data.schema import DataError, Preference, load_images
from tasks.nights import inbox
from tasks.nights.intake import file_label, take_in_all
from tasks.project import paths
from tests.tasks.nights.delivering import (
    FOREIGN_WARNINGS,
    INBOX,
    NIGHT,
    drop,
    good,
    merged_rows,
    none,
    only,
    pair,
    picture,
    tree,
)

pytestmark = FOREIGN_WARNINGS
OTHER = Path("inbox/radiology")


def others_file() -> None:
    """A delivery that waits in another client's folder, under a name that is not taken in."""
    drop("private", good(60, 2), [60, 61], OTHER)
    (OTHER / "private.jsonl").rename(OTHER / "private.rows")


def link_rows() -> None:
    (INBOX / "monday.jsonl").unlink()
    (INBOX / "monday.jsonl").symlink_to((OTHER / "private.rows").resolve())


def link_picture() -> None:
    (INBOX / "images/30.png").unlink()
    (INBOX / "images/30.png").symlink_to((OTHER / "images/60.png").resolve())


def link_pictures_folder() -> None:
    (INBOX / "images").rename(INBOX / "was")
    (INBOX / "images").symlink_to((OTHER / "images").resolve())


def link_client_folder() -> None:
    (OTHER / "private.rows").rename(OTHER / "private.jsonl")
    OTHER.rename("elsewhere")
    INBOX.rename("was")
    INBOX.symlink_to(Path("elsewhere").resolve())


def hard_link_picture() -> None:
    (INBOX / "images/30.png").unlink()
    os.link(OTHER / "images/60.png", INBOX / "images/30.png")


def pipe_rows() -> None:
    (INBOX / "monday.jsonl").unlink()
    os.mkfifo(INBOX / "monday.jsonl")


def pipe_picture() -> None:
    (INBOX / "images/30.png").unlink()
    os.mkfifo(INBOX / "images/30.png")


STRAYS: dict[str, tuple[Callable[[], None], str]] = {
    "the rows are a link": (link_rows, "it is a symbolic link"),
    "a picture is a link": (link_picture, "a symbolic link that line 1 names"),
    "the pictures' folder is a link": (link_pictures_folder, "a symbolic link that line 1 names"),
    "the client's folder is a link": (link_client_folder, "a symbolic link in the place of a client's folder"),
    "a picture is a hard link": (hard_link_picture, "a file with a second name (a hard link) that line 1 names"),
    "the rows are a pipe": (pipe_rows, "it is a named pipe"),
    "a picture is a pipe": (pipe_picture, "a named pipe that line 1 names"),
}


def everything() -> dict[str, tuple[int, bytes]]:
    """Kind and content of all that lies in the inbox, links not followed."""
    found = {}
    for folder, folders, files in (*os.walk("inbox"), *os.walk("elsewhere")):
        for name in (*folders, *files):
            path = Path(folder) / name
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path)] = (status.st_mode, content)
    return found


@pytest.mark.parametrize("kind", STRAYS)
def test_what_leads_out_of_the_inbox_or_is_no_file_is_refused_and_left_where_it_is(params: Params, kind: str) -> None:
    spoil, said = STRAYS[kind]
    others_file()
    drop("monday", good(30, 1), [30])
    spoil()
    before = everything()
    told = only(take_in_all(params, NIGHT, none))
    assert (told.client, told.state) == ("documents", "refused")
    assert said in told.reasons[0]
    assert everything() == before
    assert merged_rows() == []
    assert not tree(paths.ARCHIVE)


def test_an_image_path_out_of_the_folder_names_nothing_whatever_its_form(params: Params) -> None:
    others_file()
    outside = ["../radiology/images/60.png", str((OTHER / "images/60.png").resolve()), "images/../../radiology/images/60.png"]
    odd = ["images/\0.png", "x" * 300 + ".png", "/".join(["x"] * 900), ".", "images", "images/30.png/x.png"]
    drop("monday", [pair(40), *(pair(50 + i, image=image) for i, image in enumerate((*outside, *odd)))], [40, 30])
    told = only(take_in_all(params, NIGHT, none))
    assert (told.state, told.accepted, told.quarantined) == ("merged", 1, 9)
    assert [row.id for row in merged_rows()] == ["n40"]
    assert len(tree(OTHER)) == 3  # nothing there was taken for the delivery's and removed
    assert len(list(told.folder.rglob("*.png"))) == 1


def test_a_link_that_is_swapped_in_between_the_look_and_the_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("private")
    (tmp_path / "box").mkdir()
    (tmp_path / "box/a").write_text("mine")
    real, swapped = os.stat, []

    def stat_then_swap(*arguments: Any, **named: Any) -> os.stat_result:
        found = real(*arguments, **named)
        if arguments[0] == "a" and not swapped:
            swapped.append(True)
            (tmp_path / "box/a").unlink()
            (tmp_path / "box/a").symlink_to(tmp_path / "secret")
        return found

    monkeypatch.setattr(os, "stat", stat_then_swap)
    with pytest.raises(inbox.Stray, match="a symbolic link"), inbox.open_inside(tmp_path / "box", "a"):
        pass
    assert swapped


def test_a_folder_swapped_for_a_link_while_its_file_is_open_has_nothing_removed_elsewhere(tmp_path: Path) -> None:
    for folder in ("mine", "theirs"):
        (tmp_path / folder / "images").mkdir(parents=True)
        (tmp_path / folder / "images/1.png").write_text("same")
    with inbox.open_inside(tmp_path / "mine", "images/1.png") as file:
        (tmp_path / "mine/images").rename(tmp_path / "mine/was")
        (tmp_path / "mine/images").symlink_to(tmp_path / "theirs/images")
        assert file.read() == b"same"
        with pytest.raises(inbox.Stray, match="a symbolic link"):
            inbox.remove_inside(tmp_path / "mine", "images/1.png")
    assert (tmp_path / "theirs/images/1.png").exists()


def test_links_swapped_in_and_out_all_the_while_never_let_another_clients_bytes_through(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("private")
    (tmp_path / "box/images").mkdir(parents=True)
    (tmp_path / "box/own").write_text("mine")
    done = threading.Event()

    def swap() -> None:
        place = tmp_path / "box/images/1"
        for turn in range(4000):
            fresh = tmp_path / "box/fresh"
            if turn % 2:
                fresh.symlink_to(tmp_path / "secret")
            else:
                fresh.write_text("mine")
            fresh.rename(place)
        done.set()

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = set()
    while not done.is_set():
        try:
            with inbox.open_inside(tmp_path / "box", "images/1") as file:
                seen.add(file.read())
        except (inbox.Stray, OSError):
            continue
    swapper.join()
    assert seen <= {b"mine"}


# --- bounds --------------------------------------------------------------------------------------------------------------


def bounded(**bounds: int) -> Params:
    """The project's settings with other bounds."""
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["nightly"]["delivery"] |= bounds
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    return load_params(Path("params.yaml"))


BOUNDS: dict[str, tuple[dict[str, int], str]] = {
    "rows": ({"rows": 2}, "more than 2 rows"),
    "a line": ({"line_bytes": 50}, "line 1 has more than 50 bytes"),
    "all lines": ({"rows_bytes": 150}, "more than 150 bytes of rows"),
    "pictures": ({"pictures": 2}, "its rows name 3 pictures, more than 2"),
    "a picture": ({"picture_bytes": 20}, "the picture of line 1 has more than 20 bytes"),
    "all pictures": ({"pictures_bytes": 100}, "or all have more than 100"),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_delivery_beyond_a_bound_is_refused_and_the_others_are_taken_in(params: Params, kind: str) -> None:
    bounds, said = BOUNDS[kind]
    drop("monday", good(30, 3), [30, 31, 32])
    drop("tuesday", [], [])
    before = tree(INBOX)
    told = {delivery.file: delivery for delivery in take_in_all(bounded(**bounds), NIGHT, none)}
    assert told["monday.jsonl"].state == "refused"
    assert said in told["monday.jsonl"].reasons[0]
    assert tree(INBOX) == before
    assert not list(paths.ARCHIVE.glob("*/*.partial"))
    drop("monday", good(30, 3), [30, 31, 32], OTHER)
    assert {d.state for d in take_in_all(bounded(rows=3, line_bytes=10**5, rows_bytes=10**6, pictures=3, picture_bytes=10**5,
                                                   pictures_bytes=10**6), NIGHT, none)} == {"merged", "refused"}  # fmt: skip


def bomb(side: int) -> bytes:
    """A valid PNG of side x side black pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (1 + side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_set_aside_by_its_header_and_memory_stays_bounded(params: Params) -> None:
    drop("monday", [pair(30), pair(31)], [30])
    (INBOX / "images/31.png").write_bytes(bomb(13000))
    assert (INBOX / "images/31.png").stat().st_size < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = only(take_in_all(params, NIGHT, none))
    assert (told.accepted, told.quarantined) == (1, 1)
    assert any("image width is 16 to 4096 pixels, got 13000" in reason for reason in told.reasons)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB; decoded it is 169 MB, as RGB 507


def test_training_refuses_a_picture_that_grew_since_it_was_checked(tmp_path: Path) -> None:
    (tmp_path / "big.png").write_bytes(bomb(13000))
    row = Preference(id="1", image="big.png", prompt="?", chosen="2", rejected="3")
    with pytest.raises(DataError, match="the picture of row 1 of 1 cannot be read: 13000 x 13000 pixels, at most 4096 a side"):
        load_images(tmp_path, [row])


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("kind", ["eps", "ppm", "gif", "tiff"])
def test_a_picture_of_another_format_is_set_aside_and_never_decoded(params: Params, kind: str) -> None:
    drop("monday", [pair(40), pair(30)], [40])
    if kind == "eps":
        (INBOX / "images/30.png").write_bytes(EPS)
    else:
        Image.new("RGB", (16, 16)).save(INBOX / "images/30.png", format=kind)
    told = only(take_in_all(params, NIGHT, none))
    assert (told.accepted, told.quarantined) == (1, 1)
    assert told.reasons[0].endswith("image can be decoded, got UnidentifiedImageError: of no known format")


def test_deeply_nested_json_and_endless_numbers_are_bad_rows(params: Params) -> None:
    drop("monday", [pair(30), '{"a":' * 5000 + "1" + "}" * 5000, '{"id": ' + "9" * 50000 + "}", "[" * 9000], [30])
    told = only(take_in_all(params, NIGHT, none))
    assert (told.accepted, told.quarantined) == (1, 3)


@pytest.mark.parametrize("name", ["dvc.yaml", "images/x.dvc", ".gitignore", "images/.hidden.png"])
def test_a_picture_whose_name_means_something_to_dvc_or_git_is_refused(params: Params, name: str) -> None:
    drop("monday", [pair(30, image=name)], [])
    picture(INBOX / "p.png", 30)
    (INBOX / name).parent.mkdir(exist_ok=True)
    (INBOX / "p.png").rename(INBOX / name)
    told = only(take_in_all(params, NIGHT, none))
    assert told.state == "refused"
    assert "line 1: a picture's name must end with one of .png" in told.reasons[0]


# --- names ---------------------------------------------------------------------------------------------------------------

UGLY = [
    "[bold red]x", "[red", "a\x1b[2Jb", "two\nlines", "<script>alert(1)</script>".replace("/", "∕"), "\u202egnp.x",
    "$\\frac{", "%s{0}", "-rf", "'\"`", "x" * 240,
]  # fmt: skip


@pytest.mark.parametrize("name", UGLY)
def test_an_ugly_name_is_taken_in_and_never_shown(params: Params, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    drop(name, [pair(30), pair(31, id=name, image=f"images/{name[:200]}.png")], [30])
    picture(INBOX / f"images/{name[:200]}.png", 31)
    told = only(take_in_all(params, NIGHT, none))
    assert (told.state, told.accepted) == ("merged", 2)
    assert tree(INBOX) == {}
    printed = "".join(capfd.readouterr())
    assert f"documents: {told.digest[:8]}: merged" in printed
    assert name not in printed
    assert "\x1b[2J" not in printed


@pytest.mark.parametrize("folder", ["[", "a\x1b[2Jb", "Δ b", "x\ny"])
def test_a_folder_of_no_client_with_an_ugly_name_is_refused_and_told_as_unknown(
    params: Params, folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    drop("]", good(30, 1), [30], Path("inbox") / folder)  # "inbox/[/].jsonl" is markup that closes nothing
    told = only(take_in_all(params, NIGHT, none))
    assert told.state == "refused"
    assert told.public_view(params.clients).client == "unknown"
    printed = "".join(capfd.readouterr())
    assert folder not in printed.replace("\n", " ")
    assert "unknown: " in printed


def test_a_name_that_is_no_utf_8_is_refused(params: Params) -> None:
    drop("monday", good(30, 1), [30])
    os.rename(INBOX / "monday.jsonl", os.fsencode(INBOX) + b"/\xff\xfe.jsonl")  # noqa: PTH104 (bytes)
    told = only(take_in_all(params, NIGHT, none))
    assert told.reasons == ["inbox/documents: its name is not UTF-8; rename it"]
    assert json.loads(told.text)["file"] == "\\udcff\\udcfe.jsonl"


def test_the_list_of_what_waits_shows_every_name_with_its_escapes(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.deliveries import deliveries

    drop("]\x1b[2J", good(30, 1), [30], Path("inbox/["))
    deliveries(None, None, now=False)
    printed = capsys.readouterr().out
    label = file_label(Path("inbox/[/]\x1b[2J.jsonl"))
    assert f"{label}  inbox/[/]\\x1b[2J.jsonl" in printed
