"""Public names: that they are where they are said to be, and what they cost to import."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import etcdops
from etcdops import errors
from etcdops.cluster import Cluster
from etcdops.runtimes.fake import FakeRuntime
from etcdops.state import Store
from tests.conftest import ROOT

#: What takes longer to import than all that `ctl` does.
HEAVY = ["asyncio", "etcd3", "fabric", "google", "grpc", "jinja2", "msgspec", "paramiko", "psutil", "rich", "sh"]

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(etcdops.__path__, "etcdops.")
    if not module.name.endswith("__main__")
)


def _run(code: str, *args: str, cwd: Path | None = None, **env: str) -> list[str]:
    """Run Python code in a process of its own, and give the list that it prints as its last line, in JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- names


@pytest.mark.parametrize("name", etcdops.__all__)
def test_each_public_name_is_there(name: str) -> None:
    """`from etcdops import NAME` gives what its home module has under that name."""
    found = getattr(etcdops, name)
    if name in errors.__all__:
        assert found is getattr(errors, name)
        return
    home, _, attribute = etcdops._HOMES[name].partition(":")
    assert found is getattr(importlib.import_module(f"etcdops.{home}"), attribute or name)
    # Not some other module's, imported there by the way.
    assert found.__module__ == f"etcdops.{home}"


def test_every_error_is_public() -> None:
    """Whatever can be raised can be caught by its flat name."""
    assert set(errors.__all__) <= set(etcdops.__all__)
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == set(errors.__all__)


def test_the_list_of_names_is_sorted_and_shown() -> None:
    """`dir(etcdops)` and `from etcdops import *` show the same names, each once."""
    assert etcdops.__all__ == sorted(set(etcdops.__all__))
    assert set(etcdops.__all__) <= set(dir(etcdops))
    scope: dict[str, object] = {}
    exec("from etcdops import *", scope)  # as a user's module would
    assert set(etcdops.__all__) <= set(scope)


def test_type_checkers_see_the_same_names() -> None:
    """The imports that only a type checker executes name exactly what is loaded when it is first used."""
    tree = ast.parse(Path(str(etcdops.__file__)).read_text())
    [guard] = [node for node in tree.body if isinstance(node, ast.If)]
    seen: dict[str, str] = {}
    for node in guard.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        for alias in node.names:
            if alias.name != "*":
                home = node.module.removeprefix("etcdops.")
                seen[alias.asname or alias.name] = home + (f":{alias.name}" if alias.asname != alias.name else "")
    seen.pop("EtcdopsError")  # from the errors, which are imported all
    assert seen == etcdops._HOMES


def test_an_unknown_name_is_an_ordinary_error() -> None:
    """A name that is not there is an AttributeError, so `hasattr` and `from … import` fail as they should."""
    assert not hasattr(etcdops, "Clutser")
    with pytest.raises(AttributeError, match="module 'etcdops' has no attribute 'Clutser'"):
        etcdops.Clutser  # noqa: B018  # the attribute is looked up
    with pytest.raises(ImportError):
        importlib.import_module("etcdops.Clutser")


@pytest.mark.parametrize("name", MODULES)
def test_each_module_has_what_it_says(name: str) -> None:
    """Every name in a module's `__all__` exists, and none is listed twice."""
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert len(set(listed)) == len(listed)
    for each in listed:
        assert hasattr(module, each), each


def test_it_is_typed() -> None:
    """Type checkers of other projects use the annotations only where this file says that they may."""
    assert Path(str(etcdops.__file__)).with_name("py.typed").exists()


# -- what an import costs

IMPORTED = """
import json, sys
before = set(sys.modules)
import etcdops
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_the_package_imports_nothing_else() -> None:
    """`import etcdops` loads that one module and its errors, which are small: the rest comes when it is used."""
    assert set(_run(IMPORTED)) <= {"etcdops", "etcdops.errors", "__future__"}


LOADED_AT_EXEC = """
import json, os, sys
heavy = sys.argv.pop(1).split(",")
def execve(path, argv, env):
    print(json.dumps(sorted(name for name in heavy if name in sys.modules)))
    sys.stdout.flush()
    os._exit(0)
os.execve = execve
"""
ETCDOPS = LOADED_AT_EXEC + "sys.argv[0] = 'etcdops'\nfrom etcdops.cli import main\nmain()\n"
INVOKE = LOADED_AT_EXEC + "sys.argv[0] = 'invoke'\nfrom invoke.main import program\nprogram.run()\n"


@pytest.mark.parametrize("program", ["etcdops", "invoke"])
@pytest.mark.parametrize("arguments", [["version"], ["get", "k"]], ids=["without a cluster", "with a cluster"])
def test_ctl_imports_nothing_heavy(tmp_path: Path, store: Store, program: str, arguments: list[str]) -> None:
    """By the time that etcdctl takes over, none of the large packages has been imported, whichever the program."""
    (tmp_path / "tasks.py").write_text((ROOT / "tasks.py").read_text())
    code = {"etcdops": ETCDOPS, "invoke": INVOKE}[program]
    # Invoke itself imports this one.
    heavy = [name for name in HEAVY if (program, name) != ("invoke", "asyncio")]
    with Cluster.create("lab", size=1, runtime=FakeRuntime(), store=store):
        found = _run(
            code,
            ",".join(heavy),
            "ctl",
            "--",
            *arguments,
            cwd=tmp_path,
            ETCDOPS_STATE_DIR=str(store.root),
            PYTHONPATH=str(Path(str(etcdops.__file__)).parent.parent),
        )
    assert found == []


PROBE = """
import json, sys
for module in sys.argv[2:]:
    __import__(module)
print(json.dumps(sorted(name for name in sys.argv[1].split(",") if name in sys.modules)))
"""


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("etcdops.errors", []),
        ("etcdops.paths", []),
        ("etcdops.etcdctl", []),
        ("etcdops.binaries", []),
        ("etcdops.versions", []),
        ("etcdops.hosts", []),
        ("etcdops.interrupts", []),
        ("etcdops.pytest_plugin", []),
        ("etcdops.spec", ["msgspec"]),
        ("etcdops.state", ["msgspec"]),
        ("etcdops.runtimes.process", ["msgspec"]),
        ("etcdops.cluster", ["msgspec"]),
    ],
)
def test_modules_on_the_way_of_up_are_light(module: str, allowed: list[str]) -> None:
    """Members are started before anything large is imported; what talks to them is loaded while they elect."""
    heavy = ",".join(name for name in HEAVY if module != "etcdops.pytest_plugin" or name != "asyncio")
    assert _run(PROBE, heavy, module) == allowed
