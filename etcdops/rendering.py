"""Renders the templates of `templates/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["render"]


def render(template: str, *, filters: Mapping[str, Callable[..., object]], **values: object) -> str:
    """Give a template's text with these values filled in; raises jinja2.UndefinedError for one that it lacks.

    Nothing is escaped but by `filters`: what is rendered is Markdown or YAML.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_directory()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)


def _directory() -> Path:
    """Give the directory of the templates: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"
