"""The checks of leases and locks: what etcd may do, and what it must not, told by small histories."""

from __future__ import annotations

import msgspec
import pytest

from etcdops.answers import Lease
from etcdops.errors import EtcdError
from etcdops.model import Answer, Model
from etcdops.ops import Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn
from etcdops.verify import Check
from etcdops.verify.lease import check_leases
from etcdops.verify.lock import check_locks, measure_locks
from etcdops.verify.logs import check_logs
from etcdops.verify.recorded import Observed, Recorded, State
from etcdops.workload.deliveries import Delivery
from etcdops.workload.history import Operation, Outcome, Request
from etcdops.workload.profiles import Setting, load
from etcdops.workload.profiles.lock import counter_key, lock_key

SECOND = 1_000_000_000
LEASE = 77
A, B = b"etcdops/r/e/a", b"etcdops/r/e/b"


class _Story:
    """A cluster told by hand: each call at an instant in seconds, answered 10 ms later, delivered 5 ms after that."""

    def __init__(self) -> None:
        self.model = Model()
        self.history: list[Operation] = []
        self.deliveries: list[Delivery] = []

    def ask(
        self,
        at_s: float,
        request: Request,
        *,
        outcome: Outcome = "ok",
        applied: bool = True,
        stream: str = "client.0",
        took_s: float = 0.01,
    ) -> Answer | None:
        number = len(self.history) + 1
        answer: Answer | None = None
        if isinstance(request, KeepAlive):
            answer = Lease(request.lease, self.model.leases.get(request.lease, 0), self.model.revision)
        elif applied:
            before = self.model.revision
            answer = self.model.apply(request)
            if self.model.revision > before:
                self._deliver(at_s + took_s + 0.005)
        if outcome != "ok":
            answer = None
        call_ns, return_ns = round(at_s * SECOND), round((at_s + took_s) * SECOND)
        revision = 0 if answer is None else answer if isinstance(answer, int) else answer.revision
        self.history.append(
            Operation(number, stream, 0, "m", request, call_ns, call_ns, return_ns, outcome, revision, answer)
        )
        return answer

    def end(self, at_s: float, lease: int = LEASE) -> None:
        """The lease ends by itself."""
        self.model.apply(Revoke(lease))
        self._deliver(at_s)

    def _deliver(self, at_s: float) -> None:
        revision = self.model.revision
        events = self.model.events(revision)
        self.deliveries.append(Delivery(round(at_s * SECOND), 1, "events", revision, events=events))

    def recorded(self) -> Recorded:
        observed = Observed(run="r", members=("m",), states=(State(1, ()),), base=0)
        return Recorded(observed, self.history, {"m": self.deliveries})


def _leased(ttl_s: int = 3) -> _Story:
    """A lease with two keys, granted at 0 s and kept alive at 2 s."""
    story = _Story()
    story.ask(0.0, Grant(LEASE, ttl_s))
    story.ask(0.1, Put(A, b"r/2", LEASE))
    story.ask(0.2, Put(B, b"r/3", LEASE))
    story.ask(2.0, KeepAlive(LEASE))
    return story


def _lease_check(story: _Story) -> Check:
    return check_leases(story.recorded())


def test_a_lease_that_ends_in_time_passes() -> None:
    """After its last keep-alive's time to live, all keys at once: that is what etcd promises."""
    story = _leased()
    story.end(5.2)
    story.ask(6.0, Range(A))
    check = _lease_check(story)
    assert check.result == "passed", check
    assert "1 leases were granted and 1 times kept alive; 1 with keys ended by themselves" in check.detail
    assert "0.200 s after its time" in check.detail


def test_a_lease_that_ends_late_or_never_passes() -> None:
    """etcd promises no upper bound: a new leader extends every lease."""
    assert _lease_check(_leased()).result == "passed"
    story = _leased()
    story.end(60.0)
    assert _lease_check(story).result == "passed"


@pytest.mark.parametrize(("at_s", "result"), [(4.9, "failed"), (2.5, "failed"), (5.001, "passed")])
def test_an_early_end_fails(at_s: float, result: str) -> None:
    """Delivered before the last acknowledged keep-alive's sending plus its time to live, the end was early."""
    story = _leased()
    story.end(at_s)
    check = _lease_check(story)
    assert check.result == result
    if result == "failed":
        assert "lease 4d ended early, at revision 4" in check.detail
        assert "that promised 3 s" in check.detail


def test_the_time_to_live_counts_as_returned() -> None:
    """etcd may grant more than was asked for; then that is what it has promised."""
    story = _Story()
    story.model.min_ttl_s = 6
    story.ask(0.0, Grant(LEASE, 1))
    story.ask(0.1, Put(A, b"r/2", LEASE))
    story.end(4.0)
    assert _lease_check(story).result == "failed"


def test_an_unanswered_keep_alive_promises_nothing() -> None:
    """Only what was acknowledged counts."""
    story = _leased()
    story.ask(4.0, KeepAlive(LEASE), outcome="unknown")
    story.end(5.2)
    assert _lease_check(story).result == "passed"


@pytest.mark.parametrize("outcome", ["ok", "unknown"])
def test_revokes_are_excluded(outcome: Outcome) -> None:
    """A revoke ends a lease whenever it is asked for, and also if nobody heard that it did."""
    story = _leased()
    story.ask(2.5, Revoke(LEASE), outcome=outcome)
    assert _lease_check(story).result == "passed"


@pytest.mark.parametrize(
    "request_", [Delete(A), Delete(A, b"etcdops/r/f"), Txn((), (Delete(B), Range(A)), ())], ids=["key", "range", "txn"]
)
@pytest.mark.parametrize("outcome", ["ok", "unknown"])
def test_deletes_are_no_end_of_a_lease(request_: Request, outcome: Outcome) -> None:
    """A key with a lease may be deleted like any other; the lease lives on with what is left."""
    story = _leased()
    story.ask(2.5, request_, outcome=outcome)
    story.end(5.5)
    assert _lease_check(story).result == "passed"


def test_a_delete_without_an_answer_is_not_taken_for_a_revoke_under_way() -> None:
    """Such a delete may take all keys of a lease while its revoke is on the way; until that, keys may be attached."""
    story = _Story()
    story.ask(0.0, Grant(LEASE, 5))
    story.ask(0.1, Put(A, b"1", LEASE))
    story.ask(1.0, Revoke(LEASE), outcome="unknown", applied=False)
    story.ask(1.0, Delete(A), outcome="unknown")
    story.ask(1.1, Put(B, b"1", LEASE), outcome="unknown")
    story.ask(1.2, Revoke(LEASE))
    check = check_leases(story.recorded())
    assert (check.result, check.detail.count("without an answer")) == ("passed", 0), check


def test_keys_that_do_not_go_together_fail() -> None:
    """A lease that ends takes all of its keys in one revision."""
    story = _leased()
    story.model.apply(Delete(A))
    story._deliver(5.5)
    check = _lease_check(story)
    assert check.result == "failed"
    assert "its keys did not go together: etcdops/r/e/b" in check.detail


def test_a_key_that_left_the_lease_does_not_go_with_it() -> None:
    """A put without the lease detaches the key: it stays, and is not missed."""
    story = _leased()
    story.ask(2.5, Put(A, b"r/9"))
    story.end(5.5)
    assert _lease_check(story).result == "passed"
    taken = _leased()
    taken.ask(2.5, Put(A, b"r/9"))
    taken.model.apply(Delete(A, B + b"\0"))
    taken._deliver(5.5)
    assert _lease_check(taken).result == "failed"


def test_a_lease_that_is_found_alive_after_its_end_fails() -> None:
    """A keep-alive that is sent after the end was seen must not find the lease alive."""
    story = _leased()
    story.end(5.5)
    story.model.leases[LEASE] = 3
    story.ask(6.0, KeepAlive(LEASE))
    check = _lease_check(story)
    assert check.result == "failed"
    assert "a keep-alive sent 0.500 s later found it alive" in check.detail


def test_a_key_attached_to_an_ended_lease_fails() -> None:
    """Nothing can be attached to a lease that has ended."""
    story = _leased()
    story.end(5.5)
    story.model.leases[LEASE] = 3
    story.ask(6.0, Put(A, b"r/8", LEASE))
    check = _lease_check(story)
    assert check.result == "failed"
    assert "was attached to lease 4d, which had ended at revision 4" in check.detail


@pytest.mark.parametrize("how", ["revoke", "keep-alive"])
def test_keys_of_a_lease_that_is_known_to_be_gone_fail(how: str) -> None:
    """Once the lease is known to be gone, whoever asks must not be answered from a state in which its keys exist."""
    story = _leased()
    gone = Revoke(LEASE) if how == "revoke" else KeepAlive(LEASE)
    answer: Answer = 3 if how == "revoke" else Lease(LEASE, 0, 3)
    number = len(story.history) + 1
    story.history.append(
        Operation(number, "client.0", 0, "m", gone, 6 * SECOND, 6 * SECOND, 6 * SECOND + 1, "ok", 3, answer)
    )
    story.ask(5.9, Range(B))
    assert _lease_check(story).result == "passed"
    story.ask(6.5, Range(B), stream="client.1")
    check = _lease_check(story)
    assert check.result == "failed"
    assert "was known to be gone, and still had keys at revision 3" in check.detail


def test_stale_reads_say_nothing_of_a_lease() -> None:
    """A serializable read may be answered from before the end."""
    story = _leased()
    stale = story.ask(5.0, Range(B, serializable=True))
    story.ask(5.1, Revoke(LEASE))
    operation = story.history[-2]
    story.history[-2] = msgspec.structs.replace(operation, call_ns=6 * SECOND, return_ns=6 * SECOND + 1)
    assert stale is not None
    assert _lease_check(story).result == "passed"


def test_without_leases_or_a_whole_log_nothing_is_said() -> None:
    """No lease, no watch, a hole in the log, or an unread base: inconclusive."""
    assert _lease_check(_Story()).result == "inconclusive"
    story = _leased()
    whole = story.recorded()
    assert check_leases(whole._replace(deliveries={})).result == "inconclusive"
    hole = check_leases(whole._replace(deliveries={"m": story.deliveries[1:]}))
    assert (hole.result, "revision 2" in hole.detail) == ("inconclusive", True)
    unread = msgspec.structs.replace(whole.observed, base=-1)
    assert check_leases(whole._replace(observed=unread)).result == "inconclusive"


def test_the_first_delivery_counts() -> None:
    """A member that delivers late does not excuse one that has delivered early."""
    story = _leased()
    story.end(4.0)
    late = [msgspec.structs.replace(each, t_ns=each.t_ns + 9 * SECOND) for each in story.deliveries]
    recorded = story.recorded()
    assert check_leases(recorded._replace(deliveries={"late": late})).result == "passed"
    for members in ({"late": late, "m": story.deliveries}, {"m": story.deliveries, "late": late}):
        assert check_leases(recorded._replace(deliveries=members)).result == "failed"


# -- locks


def _lock_story(fencing: bool, hold_s: float, turns: int = 3000) -> _Story:
    """Clients of the lock profile on a model whose leases end in time."""
    setting = Setting(run="r", seed=2, clients=3, fencing=fencing, hold_s=hold_s, ttl_s=3)
    profile = load("lock", setting)
    clients = [profile.client(index) for index in range(3)]
    story, ends = _Story(), dict[int, float]()
    for turn in range(turns):
        at_s = turn / 50
        for lease in [lease for lease, end in ends.items() if end <= at_s]:
            story.end(at_s, lease)
            del ends[lease]
        index = turn % 3
        request = clients[index].next(len(story.history) + 1, at_s)
        if request is None:
            continue
        try:
            answer = story.ask(at_s, request, stream=f"client.{index}")
        except EtcdError:
            clients[index].ended(turn, request, "failed", None, at_s)
            continue
        if isinstance(request, Revoke):
            ends.pop(request.lease)
        if isinstance(request, (Grant, KeepAlive)) and story.model.leases.get(request.lease):
            ends[request.lease] = at_s + 3
        clients[index].ended(turn, request, "ok", answer, at_s + 0.01)
    return story


def test_fencing_loses_nothing_though_sections_overlap() -> None:
    """A holder that rests too long overlaps with the next; its late write is refused, and no update is lost."""
    recorded = _lock_story(True, hold_s=5.0).recorded()
    seen = measure_locks(recorded)
    assert seen.overlaps
    assert seen.refused
    assert not seen.lost
    check = check_locks(recorded, fenced=True)
    assert check.result == "passed", check
    assert "0 of them lost" in check.detail
    assert "which a lease cannot prevent" in check.detail


def test_without_fencing_lost_updates_are_told_and_expected() -> None:
    """The same without a token loses updates; that is told, and no fault of etcd's."""
    recorded = _lock_story(False, hold_s=5.0).recorded()
    seen = measure_locks(recorded)
    assert seen.lost_updates > 0
    check = check_locks(recorded, fenced=False)
    assert check.result == "passed"
    assert f"{seen.lost_updates} of them lost" in check.detail
    assert "That is expected without fencing" in check.detail
    # What is lost is what the counter lacks at the end.
    newest = max(recorded.history, key=lambda op: op.call_ns if op.key == counter_key("r") and op.kind == "put" else 0)
    assert isinstance(newest.request, Put)
    assert int(newest.request.value.rpartition(b":")[2]) == seen.updates - seen.lost_updates


def test_lost_updates_with_fencing_fail() -> None:
    """A cluster that lets a late write through in spite of its token is at fault."""
    check = check_locks(_lock_story(False, hold_s=5.0).recorded(), fenced=True)
    assert check.result == "failed"
    assert "in spite of the fencing token" in check.detail


def test_without_a_rest_nothing_overlaps() -> None:
    """Clients that are quick enough take turns."""
    recorded = _lock_story(False, hold_s=0.0).recorded()
    seen = measure_locks(recorded)
    assert len(seen.sections) > 20
    assert not seen.overlaps
    assert not seen.lost
    assert "no two sections overlapped" in check_locks(recorded, fenced=False).detail


def test_a_lost_update_is_found_without_watches() -> None:
    """From the acknowledged writes alone, too."""
    recorded = _lock_story(False, hold_s=5.0).recorded()
    assert measure_locks(recorded._replace(deliveries={})).lost == measure_locks(recorded).lost


def _acquire(number: int) -> Txn:
    key = lock_key("r")
    free = Compare(key, "create_revision", "=", 0)
    return Txn((free,), (Put(key, f"r/{number}".encode()), Range(key)), (Range(key),))


def _unlock() -> Txn:
    return Txn((), (Delete(lock_key("r")), Range(lock_key("r"))), ())


def test_an_update_that_was_made_twice_is_lost_once() -> None:
    """Two that read the same count and write the same: the counter misses one, and the sections overlap in part."""
    story = _Story()
    story.ask(0.0, _acquire(1), stream="client.0")
    story.model.apply(Delete(lock_key("r")))
    story._deliver(1.0)
    story.ask(2.0, _acquire(2), stream="client.1")
    story.ask(3.0, Put(counter_key("r"), b"r/3:1"), stream="client.0")
    story.ask(3.1, Put(counter_key("r"), b"r/4:1"), stream="client.1")
    story.ask(4.0, _unlock(), stream="client.0")
    story.ask(5.0, _unlock(), stream="client.1")
    story.ask(6.0, _acquire(3), stream="client.0")
    story.ask(6.5, Put(counter_key("r"), b"r/8:2"), stream="client.0")
    seen = measure_locks(story.recorded())
    assert [(one.stream, one.from_ns, one.until_ns) for one in seen.sections] == [
        ("client.0", 10_000_000, 4 * SECOND),
        ("client.1", 2 * SECOND + 10_000_000, 5 * SECOND),
        ("client.0", 6 * SECOND + 10_000_000, 6 * SECOND + 510_000_000),
    ]
    assert seen.overlaps == ((seen.sections[0], seen.sections[1]),)
    assert (seen.updates, seen.final, seen.lost_updates) == (3, 2, 1)
    assert [(one.counted, one.before) for one in seen.lost] == [(1, 1)]
    assert "for 1.990 s at most" in check_locks(story.recorded(), fenced=False).detail


def test_one_holder_alone_proves_nothing() -> None:
    """Without a second client that held the lock, or without an update, the check is inconclusive."""
    assert check_locks(_Story().recorded(), fenced=True).result == "inconclusive"
    story = _Story()
    key = lock_key("r")
    story.ask(0.0, Txn((Compare(key, "create_revision", "=", 0),), (Put(key, b"r/1"), Range(key)), (Range(key),)))
    story.ask(0.1, Put(counter_key("r"), b"r/2:1"))
    assert check_locks(story.recorded(), fenced=False).result == "inconclusive"


def test_a_write_that_nobody_acknowledged_counts_if_the_log_has_it() -> None:
    """An unknown write that was applied raised the counter: the next one after it is no lost update."""
    story = _lock_story(True, hold_s=0.0, turns=600)
    at = next(i for i, op in enumerate(story.history) if op.kind == "txn" and _counts(op))
    story.history[at] = msgspec.structs.replace(story.history[at], outcome="unknown", answer=None, revision=0)
    assert not measure_locks(story.recorded()).lost


def _counts(op: Operation) -> bool:
    request = op.request
    return isinstance(request, Txn) and any(
        isinstance(one, Put) and one.key == counter_key("r") for one in request.success
    )


def test_a_data_race_in_a_log_fails() -> None:
    """What Go's race detector reports is a failure of the member."""
    assert (
        check_logs({"m": ["=" * 18, "WARNING: DATA RACE", "Read at 0x00c0000b4010 by goroutine 7:"]}).result == "failed"
    )
    assert check_logs({"m": ['{"level":"info","msg":"put WARNING: DATA RACE"}']}).result == "passed"
