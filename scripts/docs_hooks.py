"""Hooks of mkdocs: pages that lie outside of docs/, and links to files that are no pages.

Links are written as GitHub resolves them. On the site, a link to a source file becomes its text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# The site's pages that are files of the repository's root.
PAGES = {
    "changelog.md": ROOT / "CHANGELOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "security.md": ROOT / "SECURITY.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from the root."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports], of the extra `docs`

    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=source.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Redirects the links of a page."""
    uri: str = page.file.src_uri
    source = PAGES.get(uri, DOCS / uri)
    return redirected(markdown, DOCS / uri, source.parent)


def redirected(markdown: str, page: Path, folder: Path) -> str:
    """The page's text with links for the site.

    Args:
        markdown: the text.
        page: where the page lies on the site, as a file in docs/.
        folder: where its links start.
    """
    pages = {source: DOCS / uri for uri, source in PAGES.items()} | {DOCS / "README.md": DOCS / "index.md"}

    def redirect(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        target = pages.get(target, target)
        if target.is_relative_to(DOCS):
            return f"[{link['text']}]({os.path.relpath(target, page.parent)}{link['anchor'] or ''})"
        return link["text"] if target.exists() else link[0]

    return _LINK.sub(redirect, markdown)
