"""The documents build into a site without a warning, and every page is in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]


def pages_of(entries: list) -> list[str]:
    """Files of a `nav` of mkdocs.yml."""
    found = []
    for entry in entries:
        (content,) = entry.values()
        found += [content] if isinstance(content, str) else pages_of(content)
    return found


def build(config: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*command, "--config-file", str(config), "--site-dir", str(site)],
        capture_output=True,
        text=True,
        cwd=REPO,
    )


def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is missing: make setup brings it")
    done = build(REPO / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    listed = pages_of(yaml.safe_load((REPO / "mkdocs.yml").read_text())["nav"])
    for page in sorted((REPO / "docs").glob("*.md")):
        assert page.name in listed
        assert (tmp_path / "site" / page.with_suffix(".html").name).is_file()
    api = (tmp_path / "site" / "api.html").read_text()
    assert "confidence_threshold" in api and "track_ids" in api


def test_a_broken_link_fails_the_build(tmp_path):
    """The build would show it: a page that links to nothing, a name that no module has."""
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is missing: make setup brings it")
    (tmp_path / "docs").mkdir()
    config = yaml.safe_load((REPO / "mkdocs.yml").read_text())
    config.update(docs_dir=str(tmp_path / "docs"), nav=[{"Start": "index.md"}])
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    for text, expected in (
        ("[there](nowhere.md)", "nowhere.md"),
        ("[there](#nowhere)", "#nowhere"),
        ("::: mpn_d2.structures.oks.nothing", "mpn_d2.structures.oks.nothing"),
    ):
        (tmp_path / "docs" / "index.md").write_text(f"# Page\n{text}\n")
        done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
        assert done.returncode != 0 and expected in done.stderr + done.stdout, text
