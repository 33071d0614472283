"""The documentation does what it says: its blocks are run, its links lead somewhere.

Every fenced block of README.md, CONTRIBUTING.md and docs/ is run or parsed, in a folder where the
files and models that it names are there (tests/docs/scratch.py), or says why not.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "docs"))
import scratch
import yaml_blocks
from blocks import LANGUAGES, REASONS, ROOT, Block, blocks_of, commands_of, indented_commands, pages
from names import names_for

import evomerge
from evomerge import installed
from evomerge.cli import main

PAGES = pages()
BLOCKS = {page: list(blocks_of(page)) for page in PAGES}
RUN = {"sh", "python", "yaml", "toml", "json"}
BUDGET = 18  # candidates: what the scratch's runs have
QUIET = {"--watch"}  # options that wait for somebody
SWEPT: list[list[str]] = []  # sweeps that were run
MAKE_IN_CI = re.compile(r"^step make ([a-z-]+)", re.MULTILINE)


def call(*words: str) -> int:
    """The command line in this process."""
    before = sys.argv
    sys.argv = ["evomerge", *words]
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def prepared(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scratch with its finished runs; each page gets a copy."""
    folder = tmp_path_factory.mktemp("prepared")
    scratch.link_models(folder, tiny_zoo)
    scratch.write_tasks(folder)
    scratch.write_files(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name in ("my_search.yaml", "quickstart"):
            assert call("run", name) == 0
        assert (
            call("run", "my_search.yaml", "--out", "runs/other", "--seed", "1", "--budget", "6")
            == 0
        )
        shutil.copytree("runs/my_search", "runs/my_sweep/nsga2-0")  # the sweep's only run
        for name in ("cma", "a", "sweep/nsga2-0"):  # what pages call their runs
            shutil.copytree("runs/my_search", f"runs/{name}")
        for name in ("random", "b", "sweep/random-0"):
            shutil.copytree("runs/other", f"runs/{name}")
        made = ("export", "runs/my_search", "--candidate", "17", "--out", "models/candidate_17")
        assert call(*made) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A page's own scratch, with the packages that the page itself writes."""
    at = tmp_path / "scratch"
    shutil.copytree(prepared, at, symlinks=True)
    monkeypatch.chdir(at)
    monkeypatch.syspath_prepend(at)
    modules = set(sys.modules)
    yield at
    monkeypatch.undo()
    for name in set(sys.modules) - modules:
        if str(at) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    installed.named.cache_clear()


def shortened(words: list[str]) -> list[str]:
    """The same command with a budget that takes seconds."""
    kept = [word for word in words if word not in QUIET]
    if "--budget" in kept:
        at = kept.index("--budget") + 1
        kept[at] = str(min(int(kept[at]), BUDGET + 6))
    elif kept[0] == "run":
        kept += ["--budget", str(BUDGET)]
    if kept[0] in ("run", "resume"):
        kept += ["--workers", "0"]  # in this process
    if kept[0] == "sweep" and "--json" not in kept:
        kept += ["--summary"] * bool(SWEPT)  # its drivers are other processes: once is enough
        SWEPT.append(kept)
    return kept


def expanded(word: str) -> list[str]:
    """What a shell makes of a word with a star."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def run_command(words: list[str], block: Block) -> None:
    """Run one command of a shell block.

    Raises:
        ValueError: nothing here can run it.
    """
    expected = int(block.marks.get("fails", "0"))
    if words[0] == "evomerge":
        words = [one for word in words for one in expanded(word)]
        assert call(*shortened(words[1:])) == expected, f"{block.where}: {' '.join(words)}"
    elif words[0] == "make":
        targets = MAKE_IN_CI.findall((ROOT / ".ci" / "run").read_text())
        assert set(words[1:]) <= set(targets), f"{block.where}: CI does not make {words[1:]}"
    elif words[0] == "python" and words[1].endswith(".py"):
        before, sys.argv = sys.argv, words[1:]
        try:
            runpy.run_path(words[1], run_name="__main__")
        finally:
            sys.argv = before
    else:
        raise ValueError(f"{block.where}: cannot run {words[0]!r}; say why: <!-- not run: ... -->")


def install(text: str, folder: Path) -> None:
    """What `pip install -e .` does with a pyproject.toml: leave its entry points to be found."""
    project = tomllib.loads(text)["project"]
    facts = folder / f"{project['name']}-{project['version']}.dist-info"
    facts.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (facts / "METADATA").write_text(head)
    lines = [
        line
        for group, entries in project.get("entry-points", {}).items()
        for line in (f"[{group}]", *(f"{name} = {at}" for name, at in entries.items()))
    ]
    (facts / "entry_points.txt").write_text("\n".join(lines) + "\n")
    importlib.invalidate_caches()
    installed.named.cache_clear()


def run_block(block: Block, folder: Path, names: dict[str, object]) -> None:
    """Run or parse one block."""
    if block.title:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    if block.language == "sh":
        for words in commands_of(block):
            run_command(words, block)
    elif block.language == "python" and block.title:
        importlib.invalidate_caches()
        importlib.import_module(Path(block.title).stem)
    elif block.language == "python":
        exec(compile(block.text, block.where, "exec"), names)  # noqa: S102
    elif block.language == "yaml":
        yaml_blocks.check(block, folder)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
        if block.title == "pyproject.toml":
            install(block.text, folder)


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCKS[p]], ids=lambda p: p.stem)
def test_every_block_runs_or_says_why_not(page: Path, request: pytest.FixtureRequest) -> None:
    todo = [b for b in BLOCKS[page] if b.language in RUN and "not run" not in b.marks]
    if not todo:
        return
    folder = request.getfixturevalue("folder")
    names: dict[str, object] = {"__name__": "block", "evomerge": evomerge, **names_for(page.name)}
    for block in todo:
        run_block(block, folder, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_block_says_what_it_is(page: Path) -> None:
    assert not indented_commands(page), "indented: nothing runs them"
    for block in BLOCKS[page]:
        assert block.language in LANGUAGES, f"{block.where}: language {block.language!r}"
        if (why := block.marks.get("not run")) is not None:
            assert why.startswith(REASONS), f"{block.where}: {why!r} is none of {REASONS}"


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", plain).strip()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_to_what_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        at = (page.parent / path).resolve() if path else page
        if at == ROOT / "docs" / "contributing.md":
            at = ROOT / "CONTRIBUTING.md"
        assert at.exists(), f"{page.name}: {target}"
        if anchor and at.suffix == ".md":
            assert anchor in anchors_of(at), f"{page.name}: {target}"


def test_every_page_has_a_place_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    named = re.findall(r"([\w/]+\.md)$", nav, re.MULTILINE)
    there = {str(p.relative_to(ROOT / "docs")) for p in PAGES if ROOT / "docs" in p.parents}
    missing = there - set(named)
    assert not missing, f"add to nav in mkdocs.yml: {missing}"
    assert set(named) - {"contributing.md"} <= there
    assert len(named) == len(set(named))


def test_the_reference_is_what_the_tables_say() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "reference"))
    made = importlib.import_module("make").PAGES
    old = [name for name, make in made.items() if page_differs(name, make())]
    assert not old, f"run `make reference`: {old}"


def page_differs(name: str, made: str) -> bool:
    """Whether a page is other than what is made for it."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8") != made.rstrip() + "\n"


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    fetched = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>")
    for page in pages:
        found = [tag for tag in fetched.findall(page.read_text()) if "canonical" not in tag]
        assert not found, (page.name, found)
    index = json.loads((tmp_path / "search" / "search_index.json").read_text())
    assert any("clip_mean" in entry["text"] for entry in index["docs"])


def test_few_blocks_are_not_run() -> None:
    blocks = [b for found in BLOCKS.values() for b in found if b.language in RUN]
    idle = [block for block in blocks if "not run" in block.marks]
    why = Counter(block.marks["not run"] for block in idle)
    print(f"{len(idle)} of {len(blocks)} blocks are not run: {dict(why)}")
    assert len(blocks) > 80
    assert len(idle) <= 0.25 * len(blocks), why
