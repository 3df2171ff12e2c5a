"""The report replaces its own files as a whole, and touches no others."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from studies import add, own_network

from worstcase.lock import locked
from worstcase.report.files import LIST, LOCK, replace_files
from worstcase.report.write import write_report

OWN = re.compile(r"index\.html|(a|b|c)\.(csv|png)")
OLD = {"a.csv": b"old a", "b.png": b"old b", "index.html": b"the old page"}
NEW = {"a.csv": b"new a", "c.png": b"new c", "index.html": b"the new page"}
USERS = {"data.csv": b"mine", "photo.png": b"mine too", "b.csv": b"my own b"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_list(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name != LIST}


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listing(files: object, **changes: object) -> bytes:
    return json.dumps({"worstcase report": 1, "token": "0" * 32, "files": files, **changes}).encode()


def refused(folder: Path, name: str, files: dict[str, bytes] = NEW) -> None:
    """The report names the file that is in its way, in one line, and has changed nothing."""
    before = contents(folder)
    with pytest.raises(ValueError, match=re.escape(str(folder / name))) as error:
        replace_files(folder, files, OWN)
    assert "choose another out=" in str(error.value) and "\n" not in str(error.value)
    assert contents(folder) == before


def test_files_of_an_earlier_report_are_replaced_and_other_files_stay(tmp_path):
    put(tmp_path, USERS)
    replace_files(tmp_path, OLD, OWN)
    assert without_list(tmp_path) == OLD | USERS
    replace_files(tmp_path, NEW, OWN)
    assert without_list(tmp_path) == NEW | USERS
    listed = json.loads((tmp_path / LIST).read_text())["files"]
    assert listed == {name: [sha256(content)] for name, content in NEW.items()}


@pytest.mark.parametrize("name", NEW)
def test_a_file_that_no_report_made_is_not_overwritten(tmp_path, name):
    put(tmp_path, {name: b"mine"})
    refused(tmp_path, name)


@pytest.mark.parametrize("name", ["a.csv", "index.html"])
def test_a_report_file_that_was_changed_is_not_overwritten(tmp_path, name):
    replace_files(tmp_path, OLD, OWN)
    put(tmp_path, {name: b"changed by hand"})
    refused(tmp_path, name)


def test_a_report_file_that_was_changed_is_not_deleted(tmp_path):
    replace_files(tmp_path, OLD, OWN)
    put(tmp_path, {"b.png": b"changed by hand"})
    replace_files(tmp_path, NEW, OWN)
    assert without_list(tmp_path) == NEW | {"b.png": b"changed by hand"}
    replace_files(tmp_path, NEW, OWN)
    assert (tmp_path / "b.png").exists()


def test_a_link_is_neither_followed_nor_replaced(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    replace_files(out, OLD, OWN)
    elsewhere.write_bytes(OLD["a.csv"])
    for name, target in (("a.csv", elsewhere), ("index.html", tmp_path / "nowhere"), (LIST, elsewhere)):
        kept = (out / name).read_bytes()
        (out / name).unlink()
        (out / name).symlink_to(target)
        with pytest.raises(ValueError, match=name):
            replace_files(out, NEW, OWN)
        assert (out / name).is_symlink() and elsewhere.read_bytes() == OLD["a.csv"]
        assert not (tmp_path / "nowhere").exists()
        (out / name).unlink()
        (out / name).write_bytes(kept)
    (out / "b.png").unlink()
    (out / "b.png").symlink_to(elsewhere)
    replace_files(out, NEW, OWN)
    assert (out / "b.png").is_symlink() and elsewhere.read_bytes() == OLD["a.csv"]


@pytest.mark.parametrize(
    "names",
    [
        ["../victim.csv", "sub/../../victim.csv", "..", ".", ""],
        ["data.csv", "photo.png", "b.csv\x00", "b.csv\n", "B.CSV", "b.csv/"],
        ["b.csv.png", ".b.csv", "a.csv/../b.csv"],
    ],
)
def test_no_user_file_is_deleted_because_a_list_names_it(tmp_path, names):
    out = tmp_path / "out"
    put(tmp_path, {"victim.csv": b"mine"})
    put(out, USERS)
    digests = [sha256(content) for content in (b"mine", *USERS.values())]
    absolute = str(tmp_path / "victim.csv")
    put(out, {LIST: listing(dict.fromkeys([*names, absolute], digests))})
    replace_files(out, NEW, OWN)
    assert without_list(out) == NEW | USERS
    assert (tmp_path / "victim.csv").read_bytes() == b"mine"
    assert json.loads((out / LIST).read_text())["files"].keys() == NEW.keys()


@pytest.mark.parametrize("digests", ["x", 1, None, {}, [None, 1, [], "x"], sha256(b"my own b")])
def test_a_listed_file_with_other_content_stays(tmp_path, digests):
    put(tmp_path, USERS | {LIST: listing({"b.csv": digests})})
    replace_files(tmp_path, NEW, OWN)
    assert without_list(tmp_path) == NEW | USERS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        listing({})[:-5],
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"worstcase report": 1}',
        listing([]),
        listing({}, **{"worstcase report": 2}),
        listing({"b.csv": [sha256(USERS["b.csv"])]}) + b" " * 1_000_000,
    ],
    ids=range(12),
)
def test_a_file_that_is_not_a_list_is_neither_used_nor_overwritten(tmp_path, content):
    put(tmp_path, USERS | {LIST: content})
    refused(tmp_path, LIST)


def test_a_folder_in_the_place_of_a_file_stays(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ValueError, match=re.escape("a.csv was not made by a report")):
        replace_files(tmp_path, NEW, OWN)
    (tmp_path / "a.csv").rename(tmp_path / LIST)
    with pytest.raises(ValueError, match=re.escape(f"{LIST} was not made by a report")):
        replace_files(tmp_path, NEW, OWN)
    assert [path.name for path in tmp_path.iterdir()] == [LIST]


def test_a_user_file_named_like_an_unfinished_list_is_not_deleted(tmp_path):
    put(tmp_path, {".report.json.new": b"mine"})
    refused(tmp_path, ".report.json.new")


@pytest.mark.parametrize("content", [b"", b'{"worst', listing({})[:-1]])
def test_a_list_that_was_cut_off_is_replaced(tmp_path, content):
    replace_files(tmp_path, OLD, OWN)
    put(tmp_path, {".report.json.new": content})
    replace_files(tmp_path, NEW, OWN)
    assert without_list(tmp_path) == NEW


# ---- killed


def killed(out: Path, files: dict[str, bytes], call: str, number: int) -> bool:
    """Write files in a process that dies at the n-th call; return whether it made that call."""
    pid = os.fork()
    if not pid:
        try:
            owner, name = (os, "fsync") if call == "fsync" else (Path, call)
            done, count = getattr(owner, name), [0]

            def die_at_last(*arguments, **named):
                count[0] += 1
                if count[0] == number:
                    os._exit(9)
                return done(*arguments, **named)

            setattr(owner, name, die_at_last)
            replace_files(out, files, OWN)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("call", ["replace", "unlink", "fsync"])
@pytest.mark.parametrize("before", [{}, OLD], ids=["first", "again"])
def test_a_killed_report_leaves_a_whole_page_and_the_next_report_works(tmp_path, before, call):
    number = 1
    while True:
        out = tmp_path / str(number)
        put(out, USERS)
        if before:
            replace_files(out, before, OWN)
        died = killed(out, NEW, call, number)
        left = contents(out)
        assert left.get("index.html") in (before.get("index.html"), NEW["index.html"])
        if left.get("index.html") == NEW["index.html"]:
            assert left["a.csv"] == NEW["a.csv"] and left["c.png"] == NEW["c.png"]
        third = {"b.png": b"third b", "index.html": b"the third page"}
        if number % 2:  # killed once more
            killed(out, third, "replace", 3)
        replace_files(out, third, OWN)
        assert without_list(out) == third | USERS
        if not died:
            break
        number += 1
    assert number > {"replace": 5, "fsync": 5, "unlink": 1 if before else 0}[call]


def test_an_error_while_writing_leaves_no_temporary_file(tmp_path, monkeypatch):
    replace_files(tmp_path, OLD, OWN)
    full = OSError(28, "No space left on device")
    calls = iter([None, None])

    def fsync(_):
        if next(calls, full):
            raise full

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=f"cannot be written to {tmp_path}: No space left on device; choose another"):
        replace_files(tmp_path, NEW, OWN)
    monkeypatch.undo()
    assert contents(tmp_path).keys() == {LIST, *OLD} and (tmp_path / "index.html").read_bytes() == b"the old page"
    replace_files(tmp_path, NEW, OWN)
    assert without_list(tmp_path) == NEW


def test_two_reports_do_not_write_into_one_folder_at_once(tmp_path):
    replace_files(tmp_path, OLD, OWN)
    with locked(tmp_path / LOCK), pytest.raises(ValueError, match="another report is being written to"):
        replace_files(tmp_path, NEW, OWN)
    replace_files(tmp_path, NEW, OWN)


# ---- as a user sees it


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("file", "file is a file, not a folder; choose another out="),
        ("file/below", "file is a file, not a folder; choose another out="),
        (
            "/proc/report",
            "the report cannot be written to /proc/report: No such file or directory; choose another out=",
        ),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path, out, said):
    add(tmp_path / "run", own_network())
    (tmp_path / "file").write_text("mine")
    with pytest.raises((ValueError, OSError), match=re.escape(said)) as error:
        write_report([tmp_path / "run"], tmp_path / out, {})
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_users_own_page_deletes_no_files(tmp_path):
    add(tmp_path / "run", own_network())
    page = b'<section id="data"></section><img id="picture-photo"><section id="../victim">'
    put(tmp_path, {"victim.csv": b"mine"})
    put(tmp_path / "out", USERS | {"index.html": page})
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=re.escape("out/index.html was not made by a report")):
        write_report([tmp_path / "run"], tmp_path / "out", {})
    assert contents(tmp_path / "out") == before and (tmp_path / "victim.csv").read_bytes() == b"mine"


def test_two_reports_of_the_same_runs_are_equal(tmp_path):
    add(tmp_path / "run", own_network())
    write_report([tmp_path / "run"], tmp_path / "out", {})
    before = without_list(tmp_path / "out")
    write_report([tmp_path / "run"], tmp_path / "out", {})
    assert without_list(tmp_path / "out") == before
    assert before.keys() == {"index.html", "runs.csv", "runs.png", "runs-thg.png"}
