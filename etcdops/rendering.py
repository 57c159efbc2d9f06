"""Renders the templates of `templates/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["compiled", "render", "render_html", "source"]


def render(template: str, *, filters: Mapping[str, Callable[..., object]], **values: object) -> str:
    """Give a template's text with these values filled in; raises jinja2.UndefinedError for one that it lacks.

    Nothing is escaped but by `filters`: what is rendered is Markdown or YAML.
    """
    return _render(template, filters, values, escape=False)


def render_html(template: str, *, filters: Mapping[str, Callable[..., object]], **values: object) -> str:
    """Give a page with these values filled in, every one of them escaped unless the template says otherwise.

    Raises jinja2.UndefinedError for one that it lacks.
    """
    return _render(template, filters, values, escape=True)


def source(name: str) -> str:
    """Give the text of a file beside the templates as it is: a page's style, or its script."""
    return (_directory() / name).read_text(encoding="utf-8")


def _render(
    template: str, filters: Mapping[str, Callable[..., object]], values: Mapping[str, object], *, escape: bool
) -> str:
    return str(compiled(template, tuple(sorted(filters.items())), escape=escape).render(**values))


@cache
def compiled(template: str, filters: tuple[tuple[str, Callable[..., object]], ...], *, escape: bool) -> Any:
    """Give a template of Jinja's, compiled once in a process: for the largest, that takes longer than filling it in."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_directory()),
        undefined=jinja2.StrictUndefined,
        autoescape=escape,
        keep_trailing_newline=True,
        trim_blocks=escape,
        lstrip_blocks=escape,
    )
    environment.filters.update(filters)
    return environment.get_template(template)


def _directory() -> Path:
    """Give the directory of the templates: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"
