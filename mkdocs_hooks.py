"""What the site needs beyond docs/: README.md as its first page, pictures from beside it, and the notebook as a page.

Pages are written for GitHub: their links are paths in the repository. The site holds docs/ and the pictures that pages
show; links to anything else of the repository become addresses at `repo_url`.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")
"""A relative link or picture in Markdown, up to its anchor."""
PICTURES = (".png", ".svg")


def in_repository(page: str, target: str) -> str:
    """The path in the repository of what a page (of docs/, or index.md for README.md) links to."""
    folder = "" if page == "index.md" else posixpath.dirname(f"docs/{page}")
    return posixpath.normpath(posixpath.join(folder, target))


def in_site(page: str, target: str, repository: str) -> str:
    """Where a page of the site finds what it links to: another page or picture, else the repository's address.

    What is not in the repository stays as it is: `layers[0](images)` in a block of code, or a link that the build reports.
    """
    path = in_repository(page, target)
    if not (ROOT / path).exists():
        return target
    if path == "README.md":
        path = "docs/index.md"
    if path.startswith("docs/") or path.endswith(PICTURES):
        path = path.removeprefix("docs/")
        path = path.removesuffix(".ipynb") + ".md" if path.endswith(".ipynb") else path
        return posixpath.relpath(path, posixpath.dirname(page) or ".")
    return f"{repository.rstrip('/')}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"


def notebook_page(text: str) -> str:
    """A notebook's cells as Markdown."""
    cells = json.loads(text)["cells"]
    sources = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for source, kind in sources) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add README.md as index.md, notebooks as pages, and the pictures outside docs/ that pages show."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = notebook_page(notebook.content_string)
        files.append(File.generated(config, notebook.src_uri.removesuffix(".ipynb") + ".md", content=page))
    for page in list(files.documentation_pages()):
        for target in LINK.findall(page.content_string):
            path = in_repository(page.src_uri, target)
            if path.endswith(PICTURES) and not path.startswith("docs/") and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead a page's links to where the site, or the repository's address, has what they name."""
    return LINK.sub(lambda link: f"]({in_site(page.file.src_uri, link[1], config.repo_url)}", markdown)
