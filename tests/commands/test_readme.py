"""The commands and links of README.md and docs: scripts, options, fields, targets and files that exist."""

import re
import shlex
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from config.fields import DEFAULTS
from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SCRIPTS = {"./train.sh": "train.py", "./train_kd.sh": "train_kd.py", "NAS/search.sh": "NAS/search.py"}
SCRIPTS["eval/IJB/runIJBEval.sh"] = "eval/IJB/evaluate.py"
FIELDS = set(DEFAULTS)
MADE = {"config/config.py", "config/config_mine.py"}  # by people and by derive.py


def commands(page: Path) -> list[list[str]]:
    """Returns the commands in the code blocks and the text of a page, split into words."""
    text = page.read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).splitlines() + re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    )
    found = []
    for line in lines:
        for part in re.split(r" && ", line.split("  #")[0]):
            words = shlex.split(part) if part.count('"') % 2 == 0 and "'" not in part else []
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words and (words[0] in ("make", "python") or words[0] in SCRIPTS):
                found.append(words)
    return found


@lru_cache
def help_of(script: tuple[str, ...]) -> str:
    done = run_command(ROOT, sys.executable, *script, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@lru_cache
def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check(words: list[str]) -> None:
    """Raises AssertionError for a script, an option, a field or a target that does not exist."""
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= targets(), words
        return
    if words[0] == "python":
        script = tuple(words[1:3]) if words[1] == "-m" else (words[1],)
        arguments = words[1 + len(script) :]
    else:
        script, arguments = (SCRIPTS[words[0]],), words[1:]
    help_text = help_of(script)
    for word in arguments:
        if word.startswith("--"):
            option = word.partition("=")[0].replace("_", "-")
            assert re.search(rf"{option}\b", help_text), f"{script[-1]} has no option {word}"
        elif re.fullmatch(r"[a-z_]+=.*", word):
            assert word.partition("=")[0] in FIELDS, f"{word}: no such field"
        elif re.fullmatch(r"config/config_\w+\.py", word):
            assert word in MADE or (ROOT / word).exists(), f"{word}: no such file"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands(page):
    found = commands(page)
    for words in found:
        check(words)
    assert page.name != "README.md" or page.parent != ROOT or len(found) > 20


@pytest.mark.parametrize(
    "words",
    [
        ["make", "nothing"],
        ["./train.sh", "learning_rate=1"],
        ["python", "eval/eval.py", "--no-such"],
        ["./train.sh", "--config", "config/config_no.py"],
    ],
)
def test_a_wrong_command_is_found(words):
    with pytest.raises(AssertionError):
        check(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    files = set(re.findall(r"`((?:utils|eval|tests|benchmarks|backbones|NAS|config)/[\w/.]+\.(?:py|sh|json))`", text))
    assert [file for file in sorted(files - MADE) if not (ROOT / file).exists()] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 1000
