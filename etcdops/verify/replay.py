"""W2 and the first half of W4: every answer, whole, against the reference model at the answer's revision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from etcdops.answers import Event, Lease, RangeResult, TxnResult
from etcdops.model import Answer
from etcdops.ops import Compact, Grant, KeepAlive, Range, Revoke, Txn
from etcdops.verify.columns import Columns, Ints
from etcdops.verify.describing import describe_answer, describe_event, some
from etcdops.verify.findings import Findings
from etcdops.verify.lifetimes import Compactions, check_leases
from etcdops.verify.log import Log, Unknowable, View, evaluate
from etcdops.verify.owners import Owners, same_events
from etcdops.verify.shapes import LOCAL
from etcdops.workload.history import Operation

__all__ = ["Replay"]


class Replay:
    """Judges operations one by one, each on its own, by the model."""

    def __init__(
        self,
        columns: Columns,
        log: Log,
        view: View,
        owned: Ints,
        tell: Callable[[int], str],
        findings: Findings,
        *,
        lenient: bool = False,
    ) -> None:
        self._columns, self._log, self._view, self._owned = columns, log, view, owned
        self._tell, self._findings, self._lenient = tell, findings, lenient
        self._compactions = Compactions(columns)
        self.unknowable = 0

    def check_rest(self, owners: Owners) -> None:
        """Tell the findings what is wrong with the revisions of nobody's operation, with leases and compactions."""
        self._compactions.check(self._tell, self._findings)
        check_leases(self._columns, self._log, owners, self._tell, self._findings)
        modified = self._log.rows.modified[self._log.based :]
        wrong = modified[~self._log.follows(lenient=self._lenient) & (modified <= self._log.end)]
        wrong = np.unique(wrong)
        for revision in wrong[owners.of[wrong - self._log.base - 1] < 0].tolist():
            shown = _events(self._log.events(revision))
            text = f"revision {revision} ({shown}) does not follow from the state before it"
            self._findings.add("W2", text, (), revision)

    def judge(self, number: int, op: Operation) -> None:
        """Tell the findings if an acknowledged operation in the window was not answered as the model answers."""
        if isinstance(op.request, KeepAlive):
            if not isinstance(op.answer, Lease) or op.answer.lease_id != op.request.lease:
                self._breach(number, op, "the answer is about another lease")
            return
        try:
            why = self._why(number, op)
        except Unknowable:
            self.unknowable += 1
            return
        if why:
            self._breach(number, op, why)

    def _why(self, number: int, op: Operation) -> str:
        """Give what is wrong with an answer, "" if nothing is."""
        request, answer, revision = op.request, op.answer, op.revision
        owned = int(self._owned[number])
        if answer is None:
            return "there is no answer"
        if isinstance(request, Compact):
            return "" if request.revision <= revision else f"revision {request.revision} did not exist yet"
        if isinstance(request, Grant):
            assert isinstance(answer, Lease)
            same = answer.lease_id == request.lease and answer.ttl_s >= request.ttl_s
            return "" if same else "the lease is not the one that was asked for"
        assert not isinstance(request, KeepAlive)
        if self._compactions.refuse(op):
            return "it reads what had been compacted, which is refused"
        made, events, refused = evaluate(self._view.go(revision - 1 if owned else revision), request)
        where = f"on the state of revision {revision - 1 if owned else revision}"
        if refused:
            return f"{where} the model refuses it: {refused}"
        if owned:
            seen = self._log.events(revision)
            if not same_events(events, seen, lenient=self._lenient):
                return f"{where} it makes {_events(events)}, and the log has {_events(seen)}"
        elif events and not isinstance(request, Revoke):
            return f"{where} it makes {_events(events)}, and it owns no revision"
        elif events:
            return f"its lease still had keys at revision {revision}: {_events(events)}"
        if isinstance(request, Revoke):
            return ""
        if not _agree(request, made, answer):
            return f"{where} the model answers {describe_answer(made)}"
        return ""

    def _breach(self, number: int, op: Operation, why: str) -> None:
        local = self._columns.operations.flags[number] & LOCAL
        self._findings.add("W4" if local else "W2", f"{self._tell(number)}: {why}", (op.id,), op.revision)


def _events(events: Sequence[Event]) -> str:
    return some([describe_event(event) for event in events]) or "nothing"


def _agree(request: Any, made: Answer, answer: Answer) -> bool:
    """Tell whether an answer is what the model made; keys that sort alike may come in any order, as etcd's do."""
    if type(made) is type(answer) and made == answer:
        return True
    if isinstance(request, Txn) and isinstance(made, TxnResult) and isinstance(answer, TxnResult):
        if made[:2] != answer[:2] or len(made.results) != len(answer.results):
            return False
        branch = request.success if made.succeeded else request.failure
        return all(_agree(*one) for one in zip(branch, made.results, answer.results, strict=True))
    if isinstance(request, Range) and isinstance(made, RangeResult) and isinstance(answer, RangeResult):
        if request.sort_target == "key" or made.more or made._replace(kvs=()) != answer._replace(kvs=()):
            return False
        rank = attrgetter(request.sort_target)
        return [*map(rank, made.kvs)] == [*map(rank, answer.kvs)] and sorted(made.kvs) == sorted(answer.kvs)
    return False
