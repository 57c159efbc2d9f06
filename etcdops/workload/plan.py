"""What traffic sends, and what it tells about itself while it does: the messages between the two processes."""

from __future__ import annotations

import math

import msgspec

from etcdops.errors import SpecError
from etcdops.ops import MAX_TXN_OPS
from etcdops.spec import Tls
from etcdops.workload.history import CLIENT, FAILOVER_READ, FAILOVER_WRITE, pinned_stream
from etcdops.workload.profiles import PROFILES, Setting

__all__ = [
    "FAILOVER_RULE",
    "Closed",
    "Counts",
    "Progress",
    "Summary",
    "Tally",
    "TrafficPlan",
    "Watched",
    "failover_rule",
]

_RATE_MAX = 10_000
_IN_FLIGHT_MAX = 10_000
_CLIENTS_MAX = 1_000
_KEYS_MAX = 10_000
# A lease's ID has room for the ids of 16 million operations.
_FIRST_ID_MAX = 2**23

#: How the streams that fail over choose a member. It sets their outage, hence every report prints it.
FAILOVER_RULE = (
    "an operation is tried once on each member at most, beginning with the one that the stream uses; a try that"
    " fails or is not answered within {try_ms:.0f} ms makes the stream use the next member in the order {order}, and"
    " the operation is tried there with a new key and value, until {deadline_ms:.0f} ms after it was first sent"
)


class TrafficPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to send, and what to watch meanwhile.

    The probes measure outages: a write stream pinned to each member, and streams that fail over. `failover` adds a
    write stream that fails over, `reads` a stream of linearizable reads that does. `run` is the run's id: every key
    begins with `etcdops/RUN/`. `endpoints` gives each member's client URL, in the order in which a stream fails over.
    `rate` is in operations per second and probe, 1 to 10,000. `deadline_s` ends each operation; `try_s` ends one try of
    a stream that fails over (0: deadline_s / members). `in_flight` bounds the unanswered operations of a stream (0:
    twice what the rate sends within the deadline, at most 10,000); what the schedule wants beyond it is not sent and
    recorded as failed, code NOT_SENT. `output` is the record's path. After `max_s` seconds the traffic ends by itself,
    whatever happens.

    The clients make the history that is verified: `clients` of them, each pinned to a member (round robin) and asking
    `client_rate` times a second what `profile` says, on `keys` keys that they share, chosen by `seed`. `ttl_s`,
    `fencing`, `hold_s`, `preload` and `compares` are for the profiles that know them: see `profiles.Setting`.

    `watch_from`, unless 0, is the revision from which every member is watched, over the whole key space, into
    `events-MEMBER.jsonl` beside the record; what else the profile watches goes into `watch-MEMBER-NAME.jsonl`.
    `first_id` is the id of the first operation: keys, values and leases carry ids, and a run that sends twice to one
    store, or to one restored from it, must not use one twice. Raises SpecError.
    """

    run: str
    endpoints: dict[str, str]
    output: str
    tls: Tls | None = None
    rate: int = 100
    deadline_s: float = 1.0
    try_s: float = 0.0
    failover: bool = True
    reads: bool = True
    in_flight: int = 0
    max_s: float = 300.0
    profile: str = "mixed"
    clients: int = 0
    client_rate: int = 20
    keys: int = 20
    seed: int = 0
    ttl_s: int = 3
    fencing: bool = True
    hold_s: float = 0.0
    preload: int = 4000
    compares: int = 4
    watch_from: int = 0
    first_id: int = 1

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise SpecError("traffic needs a member to send to, and the plan names none")
        if not self.run or "/" in self.run:
            raise SpecError(f"{self.run!r} cannot be a run's id: it is one part of a key, without '/'")
        if not 1 <= self.rate <= _RATE_MAX:
            raise SpecError(
                f"a rate of {self.rate} operations per second and stream is not offered: 1 to {_RATE_MAX} are",
                remedy="Give --rate a number such as 100.",
            )
        if not 0.01 <= self.deadline_s <= 60:
            raise SpecError(f"a deadline of {self.deadline_s} s for an operation is not offered: 0.01 to 60 s are")
        if not 0 <= self.try_s <= self.deadline_s:
            raise SpecError(f"a try cannot have {self.try_s} s: its operation has {self.deadline_s} s")
        if not 0 <= self.in_flight <= _IN_FLIGHT_MAX:
            raise SpecError(f"{self.in_flight} operations in flight are not offered: 1 to {_IN_FLIGHT_MAX} are")
        if not 0 < self.max_s <= 86_400:
            raise SpecError(f"traffic of {self.max_s} s is not offered: more than 0, at most 86,400 s")
        self._check_clients()

    def _check_clients(self) -> None:
        if self.profile not in PROFILES:
            raise SpecError(f"there is no profile {self.profile!r}", remedy=f"Choose one of {', '.join(PROFILES)}.")
        for what, value, least, most in (
            ("clients", self.clients, 0, _CLIENTS_MAX),
            ("operations per second and client", self.client_rate, 1, _RATE_MAX),
            ("keys", self.keys, 1, _KEYS_MAX),
            ("seconds of a lease", self.ttl_s, 1, 3600),
            ("seconds of rest for a lock's holder", self.hold_s, 0, 3600),
            ("preloaded keys", self.preload, 1, 100_000),
            ("comparisons in a transaction", self.compares, 1, MAX_TXN_OPS),
        ):
            if not least <= value <= most:
                raise SpecError(f"{value} {what} are not offered: {least:,} to {most:,} are")
        if not 1 <= self.first_id <= _FIRST_ID_MAX:
            raise SpecError(f"operations cannot begin with the id {self.first_id}: 1 to {_FIRST_ID_MAX:,} are offered")
        if self.watch_from < 0:
            raise SpecError(f"nothing can be watched from revision {self.watch_from}")

    @property
    def streams(self) -> tuple[str, ...]:
        """The probes' names: the pinned streams in the members' order, then those that fail over."""
        pinned = tuple(pinned_stream(member) for member in self.endpoints)
        return pinned + (FAILOVER_WRITE,) * self.failover + (FAILOVER_READ,) * self.reads

    @property
    def client_streams(self) -> tuple[str, ...]:
        """The clients' names."""
        return tuple(f"{CLIENT}{index}" for index in range(self.clients))

    @property
    def bound(self) -> int:
        """How many operations of a probe may be unanswered at one time."""
        return self._bound(self.rate)

    @property
    def client_bound(self) -> int:
        """How many operations of a client may be unanswered at one time."""
        return self._bound(self.client_rate)

    def _bound(self, rate: int) -> int:
        return self.in_flight or min(_IN_FLIGHT_MAX, max(16, math.ceil(2 * rate * self.deadline_s)))

    @property
    def setting(self) -> Setting:
        """What the profile is told."""
        return Setting(**{name: getattr(self, name) for name in Setting.__struct_fields__})

    @property
    def try_deadline_s(self) -> float:
        """How long one try of a stream that fails over may take."""
        return self.try_s or self.deadline_s / len(self.endpoints)


def failover_rule(plan: TrafficPlan) -> str:
    """Give the rule by which the plan's streams fail over, in words, with its figures."""
    return FAILOVER_RULE.format(
        try_ms=plan.try_deadline_s * 1000, deadline_ms=plan.deadline_s * 1000, order=", ".join(plan.endpoints)
    )


class Counts(msgspec.Struct, array_like=True, gc=False):
    """One stream so far. `sent` counts calls handed to gRPC, `not_sent` is part of `failed`.

    `last_ok_call_ns` and `last_ok_return_ns` are the latest call and the latest answer among the acknowledged
    operations; 0 without one.
    """

    sent: int = 0
    ok: int = 0
    failed: int = 0
    unknown: int = 0
    not_sent: int = 0
    in_flight: int = 0
    last_ok_call_ns: int = 0
    last_ok_return_ns: int = 0


class Tally(msgspec.Struct, array_like=True, gc=False):
    """How many operations of one kind there were, over all streams, by outcome."""

    ok: int = 0
    failed: int = 0
    unknown: int = 0


class Progress(msgspec.Struct, tag="progress"):
    """What traffic has done by `at_ns`, per stream (probes and clients) and per kind. Reported every 50 ms."""

    at_ns: int
    streams: dict[str, Counts]
    kinds: dict[str, Tally] = {}


class Summary(msgspec.Struct, tag="summary"):
    """What traffic had done when sending had ended and every answer was in, or overdue.

    `began_ns` is the instant at which the schedule begins, `ended_ns` when sending stopped. `late_p99_ms` and
    `late_max_ms` say how far behind the schedule operations were handed to gRPC. `cpu_s` is the processor time that
    the process spent between the two. `complete` is False when operations were abandoned without an answer.
    """

    streams: dict[str, Counts]
    began_ns: int
    ended_ns: int
    late_p99_ms: float
    late_max_ms: float
    cpu_s: float
    complete: bool
    kinds: dict[str, Tally] = {}


class Watched(msgspec.Struct):
    """What became of one member's watch: the newest revision of which it delivered an event, and how often it opened.

    `reached` says whether it delivered all up to the revision asked for; if not, `error` says why the last try to go on
    failed, if there was one.
    """

    revision: int = 0
    opened: int = 0
    reached: bool = False
    error: str = ""


class Closed(msgspec.Struct, tag="closed"):
    """The end of all: the watches have been closed, and the files are whole.

    `watches` has each member's watch by its name, and those on parts of the keys as "MEMBER/NAME".
    """

    watches: dict[str, Watched]
