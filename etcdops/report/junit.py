"""Runs as JUnit XML, which CI systems show: a test suite for each run, a test case for each check.

The form is what Jenkins, GitLab and others read (https://github.com/testmoapp/junitxml). A check that failed is a
failure. One that could not tell is an error, and not skipped: it must never look like passed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

from etcdops.report.loading import LoadedRun, load_run
from etcdops.report.standing import reproduce
from etcdops.report.terminal import verdict_text
from etcdops.verify import Check

__all__ = ["junit"]

#: What XML 1.0 cannot hold, escaped or not.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(folders: Sequence[Path]) -> str:
    """Give some runs as one JUnit document; raises SpecError for a folder that is no run's."""
    root = Xml.Element("testsuites", name="etcdops")
    totals = {"tests": 0, "failures": 0, "errors": 0}
    seconds = 0.0
    for folder in folders:
        suite = _suite(load_run(folder))
        root.append(suite)
        for name in totals:
            totals[name] += int(suite.get(name, "0"))
        seconds += float(suite.get("time", "0"))
    for name, count in totals.items():
        root.set(name, str(count))
    root.set("time", f"{seconds:.3f}")
    Xml.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{Xml.tostring(root, encoding="unicode")}\n'


def _suite(run: LoadedRun) -> Xml.Element:
    verdict, info = run.verdict, run.info
    checks = list(verdict.checks)
    failing = any(check.result != "passed" for check in checks)
    if verdict.verdict != "passed" and not failing:
        # Nothing that did not pass may come out without a case that says so.
        checks.append(Check("verdict", "inconclusive", f"the run is {verdict.verdict}: {'; '.join(run.problems)}"))
    last = max((entry.t_ns for entry in run.entries), default=info.began_ns)
    suite = Xml.Element(
        "testsuite",
        name=_text(verdict.drill),
        id=_text(verdict.run),
        timestamp=_text(info.began[:19]),
        time=f"{max(last - info.began_ns, 0) / 1e9:.3f}",
        tests=str(len(checks)),
        failures=str(sum(check.result == "failed" for check in checks)),
        errors=str(sum(check.result == "inconclusive" for check in checks)),
        skipped="0",
    )
    properties = Xml.SubElement(suite, "properties")
    outage = verdict.outage
    told = {
        "run": verdict.run,
        "verdict": verdict.verdict,
        "seed": verdict.seed,
        "etcd_version": verdict.cluster.etcd_version,
        "runtime": verdict.cluster.runtime,
        "members": len(verdict.cluster.members),
        "outage.write_ms": "" if outage is None or outage.write_ms is None else f"{outage.write_ms:.3f}",
        "writes.acknowledged": verdict.writes.acknowledged,
        "writes.lost": verdict.writes.lost,
        "reproduce": reproduce(info),
    }
    for name, value in told.items():
        Xml.SubElement(properties, "property", name=name, value=_text(value))
    for check in checks:
        case = Xml.SubElement(suite, "testcase", name=_text(check.name), classname=_text(f"etcdops.{verdict.drill}"))
        if check.result != "passed":
            kind = "failure" if check.result == "failed" else "error"
            first = check.detail.partition(". ")[0][:200]
            Xml.SubElement(case, kind, type=check.result, message=_text(first)).text = _text(check.detail)
    Xml.SubElement(suite, "system-out").text = _text(verdict_text(verdict))
    return suite


def _text(value: object) -> str:
    """Give a text that XML can hold."""
    return _ILLEGAL.sub("\ufffd", str(value))
