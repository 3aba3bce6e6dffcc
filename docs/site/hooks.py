"""Pages of the documentation site that do not lie in docs/: top-level files and the reference of the packages.

Every folder of a package becomes one page, which lists its modules in the order of their names. Links of the pages are
written as they work in the repository, and are turned here to where the same file lies on the site.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("faceclip", "makeup_plugin", "train_encoder", "train_generator", "eval")
# Files of the repository's top level and the page that each becomes.
TOP = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(?P<open>!?\[(?P<text>[^\]]*)\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the files that MkDocs found in docs/."""
    for source, page in TOP.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for page, content in _reference():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links into the repository to the pages of the site."""
    sources = {page_name: source for source, page_name in TOP.items()}
    here = page.file.src_uri
    folder = posixpath.dirname(sources.get(here, f"docs/{here}"))

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link["target"]))
        if "://" in link["target"] or not (ROOT / target).exists():
            return link[0]  # an address, or a mistake, about which MkDocs warns
        uri = TOP.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            return link["text"]  # in the repository only
        return f"{link['open']}{posixpath.relpath(uri, posixpath.dirname(here) or '.')}{link['anchor'] or ''})"

    return LINK.sub(turned, markdown)


def _reference() -> Iterator[tuple[str, str]]:
    """Name and text of the page of every package folder."""
    for package in PACKAGES:
        for initial in sorted((ROOT / package).rglob("__init__.py")):
            folder = initial.parent.relative_to(ROOT)
            modules = [p.stem for p in sorted(initial.parent.glob("*.py")) if not p.stem.startswith("_")]
            name = ".".join(folder.parts)
            own = "__all__" not in initial.read_text("utf-8")  # what __all__ lists stands under its module below
            options = f"{{show_root_heading: false{'' if own else ', members: false'}}}"
            lines = [f"# {name}", f"::: {name}\n    options: {options}"]
            lines += [f"::: {name}.{module}" for module in modules]
            yield f"reference/{name}.md", "\n\n".join(lines) + "\n"
