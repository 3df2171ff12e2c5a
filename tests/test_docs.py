"""The documents: their links lead somewhere, public names have docstrings, and the code shown runs."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from commands import REPOSITORY

import worstcase
from worstcase import attacks, data, methods, models
from worstcase.evaluation import flags
from worstcase.models import LeNet

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), REPOSITORY / "multirun" / "README.md"])


def prose(page: Path) -> str:
    """The text of a page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4,}.*$|`[^`\n]*\]\([^`\n]*`", "", text, flags=re.MULTILINE)


def anchors(page: Path) -> list[str]:
    """The anchors that GitHub makes for the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def broken(page: Path, link: str) -> bool:
    place, _, anchor = link.partition("#")
    target = page.parent / place if place else page
    return not target.exists() or (bool(anchor) and anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not re.match(r"\w+:", link)]
    assert [link for link in links if broken(page, link)] == []
    assert len(anchors(page)) == len(set(anchors(page))), "two headings have one anchor"


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# The `one`\n[a](page.md#the-one) [b](page.md#the-two) [c](none.md) [d](#the-one)\n")
    assert [link for link in ("page.md#the-one", "#the-one") if broken(page, link)] == []
    assert broken(page, "page.md#the-two") and broken(page, "none.md")


def test_each_flag_has_one_explanation_and_each_explanation_has_a_flag():
    raised = re.findall(r'_explained\("([\w-]+)"', inspect.getsource(flags))
    page = REPOSITORY / "docs" / "flags.md"
    sections = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]
    explained = [
        title for section, title in zip(sections, anchors(page)[1:], strict=True) if "**Raised if" in section
    ]
    assert sorted(raised) == sorted(explained)
    for section in sections:
        if "**Raised if" in section:
            assert "**Why**" in section and "**What to do**" in section


def undocumented(module: object) -> list[str]:
    """The names that a module exports, and their public methods and properties, that have no docstring."""
    missing = []
    for name in module.__all__:
        thing = getattr(module, name)
        if not (thing.__doc__ or "").strip():
            missing.append(name)
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            is_shown = inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod)
            if is_shown and not member.startswith("_") and not inspect.getdoc(getattr(thing, member)):
                missing.append(f"{name}.{member}")
    return missing


@pytest.mark.parametrize("module", [worstcase, attacks, methods, models, data], ids=lambda module: module.__name__)
def test_public_names_have_docstrings(module):
    assert undocumented(module) == []


def test_a_name_without_a_docstring_is_found():
    class Module:
        __all__ = ("Thing",)

        class Thing:
            """Explained."""

            def method(self):
                pass

    assert undocumented(Module) == ["Thing.method"]


@pytest.mark.parametrize(
    "page", ["README.md", "docs/your_network.md", "docs/your_devices.md", "docs/tolerance.md"]
)
def test_python_in_the_documents_runs(page, trained, short_ensemble, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), flags=re.DOTALL)
    blocks = [block for block in blocks if "transformers" not in block]  # tests/test_families.py runs it
    run = worstcase.load_run(trained)
    images, labels = next(iter(run.datamodule.test_dataloader()))
    torch.manual_seed(0)  # two untrained networks in a hundred are below the 5 % that an example asks for
    net = LeNet()
    names = {"net": net, "loader": [(images, labels)], "deviations": worstcase.Crossbar(net, 0.03).box.sample()}
    for block in blocks:
        exec(block.replace("outputs/lenet-mnist5k/atrice/FOLDER", str(trained)), names)
    if "result" in names:
        assert 0 <= names["result"].attacked_accuracy <= names["result"].clean_accuracy


def test_the_citation_names_this_version():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert f'version = "{cited["version"]}"' in (REPOSITORY / "pyproject.toml").read_text()
