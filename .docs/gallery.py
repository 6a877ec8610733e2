"""Hooks of the documentation: the gallery, made from the examples with every picture and source."""

import ast
import pathlib
import re

from mkdocs.structure.files import File


EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
# Modules that the other examples share.
SHARED = {"digits", "drawing", "energy_pictures", "training"}


def on_page_markdown(markdown, **_):
    """Replaces links to the examples, which are valid in the repository, by links in the site."""
    markdown = re.sub(r"\]\(\.\./\.\./examples/(README\.md|\w+\.py)\)", "](gallery.md)", markdown)
    return markdown.replace("](../../examples/", "](gallery/")


def on_page_content(html, **_):
    """Removes Python's default description of constructors that have none of their own."""
    return html.replace("<p>Initialize self.  See help(type(self)) for accurate signature.</p>", "")


def on_files(files, config):
    """Adds the gallery, and the pictures of the examples under `gallery/`."""
    files.append(File.generated(config, "gallery.md", content=page()))
    for picture in sorted(EXAMPLES.glob("*.png")):
        files.append(File.generated(config, f"gallery/{picture.name}", abs_src_path=str(picture)))
    return files


def page() -> str:
    """The gallery: the description, pictures, command and source of each example."""
    parts = [
        "# Gallery\n\nEach example is a script, divided into cells (`# %%`) that "
        'editors open as a notebook. `pip install ".[examples]"` installs what they need. Most '
        "have a small setting, `--quick`."
    ]
    scripts = [path for path in sorted(EXAMPLES.glob("*.py")) if path.stem not in SHARED]
    for script in scripts:
        source = script.read_text()
        description = ast.get_docstring(ast.parse(source)) or ""
        title, _, rest = description.partition("\n")
        owned = [p.name for p in sorted(EXAMPLES.glob(f"{script.stem}*.png"))]
        pictures = "\n\n".join(f"![{title.lstrip('# ')}](gallery/{name})" for name in owned)
        quoted = "\n".join(f"    {line}".rstrip() for line in source.splitlines())
        parts.append(
            f"## {script.name}\n\n{title.lstrip('# ')}\n\n{pictures}\n\n"
            f'??? note "What it does"\n\n{indented(rest)}\n\n'
            f"```sh\npython examples/{script.name}\n```\n\n"
            f'??? example "Source"\n\n    ```python\n{quoted}\n    ```'
        )
    return "\n\n".join(parts) + "\n"


def indented(text: str) -> str:
    """The text as it stands, inside a box."""
    lines = ["```text", *text.strip().splitlines(), "```"]
    return "\n".join(f"    {line}".rstrip() for line in lines)
