"""Every example (`>>>`) in the package's own documentation runs, and gives what it shows."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import tempfile
from pathlib import Path

import pytest

import etcdops
from etcdops.runtimes.process import ProcessRuntime


def _examples() -> list[doctest.DocTest]:
    """All examples of all modules; each sees its module's names, and the public ones."""
    public = {name: getattr(etcdops, name) for name in etcdops.__all__}
    found: dict[str, doctest.DocTest] = {}
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in ["etcdops", *(m.name for m in pkgutil.walk_packages(etcdops.__path__, "etcdops."))]:
        if "__main__" in module:
            continue
        loaded = importlib.import_module(module)
        # The messages of etcd's protocol are made when their module is loaded.
        names = {**public, **vars(loaded), **vars(loaded).get("CLASSES", {})}
        for test in finder.find(loaded, module, globs=names):
            if test.examples:
                found[test.name] = test
    return [found[name] for name in sorted(found)]


EXAMPLES = _examples()


def test_there_are_examples() -> None:
    """The central classes show how they are used: an example that is no longer found is not run either."""
    named = {test.name for test in EXAMPLES}
    central = {"etcdops", "etcdops.cluster", "etcdops.member.Member", "etcdops.drills", "etcdops.spec"}
    assert central | {"etcdops.hosts.LocalHost", "etcdops.runtimes.fake"} <= named


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_example(example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example does what its text shows, anywhere, and leaves neither a member nor a file behind."""
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append, clear_globs=False)
    assert result.failed == 0, "".join(said)
    assert list(tmp_path.rglob("*")) == [temporary]
    assert [each for each in ProcessRuntime().leftovers() if each.state_dir.startswith(str(tmp_path))] == []
