"""Who answers at an endpoint: which member of which cluster, as it says itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from etcdops import _proto, calls, wire
from etcdops.answers import MemberInfo, Status
from etcdops.calls import Call
from etcdops.errors import EtcdError, SpecError
from etcdops.spec import Tls

__all__ = ["Heard", "ask", "list_members"]

#: How long an endpoint may take to answer.
_ANSWER_S = 3.0

#: How often each is asked, over connections of their own: behind a gateway another member may answer each time.
_TIMES = 3


class Heard(NamedTuple):
    """What was heard at an endpoint.

    `member_ids` has more than one where several members answer behind it. `status` is None where a member tells its
    status to users alone. `error` says why nothing was heard, and then `member_ids` is empty.
    """

    url: str
    member_ids: tuple[int, ...] = ()
    cluster_id: int = 0
    status: Status | None = None
    error: EtcdError | None = None

    @property
    def member_id(self) -> int:
        """The member that answers there; 0 if none does, or several do."""
        return self.member_ids[0] if len(self.member_ids) == 1 else 0


class _Header(NamedTuple):
    member_id: int
    cluster_id: int


def _who() -> Call[_Header]:
    """Ask for the member list only to learn who answers: where authentication is on, that may still be told."""
    request = _proto.MemberListRequest(linearizable=False)
    return Call(
        "/etcdserverpb.Cluster/MemberList",
        request,
        lambda answer: _Header(answer.header.member_id, answer.header.cluster_id),
    )


def ask(urls: Iterable[str], tls: Tls | None) -> dict[str, Heard]:
    """Ask all these endpoints at once who they are. Writes nothing, and takes a few seconds at the longest."""
    wanted = list(dict.fromkeys(urls))
    with ExitStack() as stack:
        connections: dict[tuple[str, int], wire.Connection] = {}
        unusable: dict[str, EtcdError] = {}
        for url in wanted:
            try:
                for i in range(_TIMES):
                    connections[url, i] = stack.enter_context(wire.Connection(url, tls))
            except SpecError as error:
                unusable[url] = EtcdError("UNAVAILABLE", str(error), endpoint=url, definite=True)
        told = wire.ask_all(connections, calls.status(), timeout_s=_ANSWER_S)
        shy = {
            key: connections[key] for key, answer in told.items() if isinstance(answer, EtcdError) and _is_shy(answer)
        }
        headers = wire.ask_all(shy, _who(), timeout_s=_ANSWER_S)
    return {url: Heard(url, error=unusable[url]) if url in unusable else _heard(url, told, headers) for url in wanted}


def _is_shy(error: EtcdError) -> bool:
    """Whether a server answered, and only would not say."""
    return error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED")


def _heard(
    url: str, told: dict[tuple[str, int], Status | EtcdError], headers: dict[tuple[str, int], _Header | EtcdError]
) -> Heard:
    statuses: list[Status] = []
    names: list[_Header] = []
    errors: list[EtcdError] = []
    for i in range(_TIMES):
        answer: Any = told[url, i]
        if isinstance(answer, EtcdError):
            answer = headers.get((url, i), answer)
        if isinstance(answer, Status):
            statuses.append(answer)
        if isinstance(answer, EtcdError):
            errors.append(answer)
        else:
            names.append(_Header(answer.member_id, answer.cluster_id))
    if not names:
        return Heard(url, error=errors[0])
    return Heard(
        url,
        tuple(dict.fromkeys(name.member_id for name in names)),
        names[0].cluster_id,
        statuses[0] if statuses else None,
    )


def list_members(urls: Sequence[str], tls: Tls | None) -> tuple[tuple[MemberInfo, ...], str, bool]:
    """Give the member list, the endpoint that gave it, and whether a quorum stands behind it.

    A linearizable answer of any endpoint is preferred; without a quorum it is what one of them knows. Raises EtcdError.
    """
    last: EtcdError | None = None
    with ExitStack() as stack:
        connections = {url: stack.enter_context(wire.Connection(url, tls)) for url in urls}
        for linearizable in (True, False):
            call = calls.member_list(linearizable=linearizable)
            for url, answer in wire.ask_all(connections, call, timeout_s=_ANSWER_S).items():
                if not isinstance(answer, EtcdError):
                    return answer, url, linearizable
                last = answer
    assert last is not None
    raise last
