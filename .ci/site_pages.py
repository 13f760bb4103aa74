"""A hook of mkdocs: the pages at the top of the repository, README.md as the first, belong to the site too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
}


def on_files(files: Any, config: Any) -> Any:
    """Add them to what mkdocs found in docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they hold in the repository -> as they hold in the site."""
    if page.file.src_uri in PAGES.values():
        for name, target in PAGES.items():
            markdown = markdown.replace(f"]({name})", f"]({target})")
        return markdown.replace("](docs/", "](")
    names = "|".join(map(re.escape, PAGES))
    return re.sub(
        rf"\]\(\.\./((?:\.\./)*)({names})(#[^)]*)?\)", lambda m: f"]({m[1]}{PAGES[m[2]]}{m[3] or ''})", markdown
    )
