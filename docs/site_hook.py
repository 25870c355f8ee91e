"""MkDocs hook: pages of the repository outside of docs/ are part of the site, and links to other files are text.

README.md, CONTRIBUTING.md, CHANGELOG.md and the README files of experiments/ are shown under repository/, so that links
to them work on the site as they do in the repository. A link to a file that is no page (a script, a config) has no
target on the site: its text stays.
"""

import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUTSIDE = (
  "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md", "experiments/architectures/README.md",
)  # fmt: skip
PLACE = "repository"
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files, config):
  from mkdocs.structure.files import File  # here alone: tests read this module without mkdocs

  for name in OUTSIDE:
    files.append(File.generated(config, f"{PLACE}/{name}", abs_src_path=str(ROOT / name)))
  return files


def on_page_markdown(markdown, page, config, files):
  place = page.file.src_uri
  source = place.removeprefix(f"{PLACE}/") if place.startswith(f"{PLACE}/") else f"docs/{place}"
  pages = {file.src_uri for file in files if file.is_documentation_page() or file.src_uri.endswith(".svg")}
  return relink(markdown, source, place, pages)


def relink(markdown: str, source: str, place: str, pages: set) -> str:
  """Points links at the site.

  source: the page's path in the repository; place: its path in the site's sources; pages: all paths there.
  """

  def change(match):
    text, target = match.groups()
    path, mark, fragment = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
      return match[0]
    found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    inside = found.removeprefix("docs/") if found.startswith("docs/") else f"{PLACE}/{found}"
    if inside not in pages:
      return text
    return f"[{text}]({posixpath.relpath(inside, posixpath.dirname(place) or '.')}{mark}{fragment})"

  parts = FENCED.split(markdown)
  return "".join(part if i % 2 else LINK.sub(change, part) for i, part in enumerate(parts))
