"""Recording a cluster that somebody else runs, from its endpoints: who its members are, and how each is reached.

A client URL is recorded only if it works from here and the member that answers there proves, by its ID, to be the one.
What members advertise is often unreachable for others, or leads to another: a container's name, an address behind NAT,
a localhost that is theirs. So it is tried, and believed only where it proves true.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from etcdops import foreign, versions
from etcdops.answers import MemberInfo, hex_id
from etcdops.errors import EtcdError, Refused, SpecError, StateError
from etcdops.foreign.endpoints import check_schemes, parse_endpoints, parse_url, tls_of
from etcdops.foreign.probing import Heard, ask, list_members
from etcdops.foreign.trouble import Trouble, diagnose
from etcdops.placement import remember
from etcdops.spec import ClusterSpec, MemberSpec, Tls, is_foreign_name, valid_name
from etcdops.state import SCHEMA, ClusterRecord, DataRef, MemberRecord, Store

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["Attached", "attach"]


class Attached(NamedTuple):
    """A cluster that is recorded, and whether this call was the first to do so; `quorum`: whether one answered."""

    cluster: Cluster
    created: bool
    quorum: bool


def attach(
    endpoints: str | Iterable[str] = (),
    name: str = "lab",
    *,
    tls: Tls | None = None,
    purpose: str = "",
    store: Store | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Attached:
    """Record a cluster that somebody else runs under `name`, or refresh what is recorded of it. Writes nothing to etcd.

    `endpoints` are client URLs of its members, any number; without them, an attached cluster's recorded ones are used.
    Its purpose is "production" unless "lab" is asked for. What a person should know goes to `progress`.

    Raises SpecError for what is no endpoint, and for PEM files that cannot be used or are of no use. Raises Refused,
    and records nothing, when no endpoint answers, with the reason of each; when they lead to different clusters; when
    no member can be told apart; when the name is taken by another cluster, or the cluster has another name already.
    """
    from etcdops.cluster import Cluster

    store = store or Store.find()
    valid_name(name)
    given = parse_endpoints(endpoints)
    if tls:
        tls = tls_of(tls.ca, tls.client_cert, tls.client_key)
    known = _known(store, name)
    if known:
        given = given or tuple(member.client_url for member in known.members if member.client_url)
        tls = tls or (known.spec.tls if any(url.startswith("https://") for url in given) else None)
    if not given:
        raise SpecError("no endpoint is given", remedy="Give --endpoints http://HOST:2379, or several with commas.")
    check_schemes(given, tls)

    heard = ask(given, tls)
    answered = [each for each in heard.values() if each.error is None]
    if not answered:
        raise _nobody(heard.values(), tls)
    for url, trouble in _troubles(heard.values(), tls):
        progress(f"{url} does not answer: {trouble.said}")
    cluster_id = _one_cluster(answered)
    _refuse_other(store, name, known, cluster_id)
    try:
        listed, source, quorum = list_members([each.url for each in answered], tls)
    except EtcdError as error:
        raise _no_list(error) from error
    if not quorum:
        progress(f"no quorum answers: the members are those that {source} knows, and what it knows may be old")

    urls = _reach(listed, answered, known, cluster_id, tls, progress)
    if not any(urls.values()):
        raise Refused(
            f"several members answer behind {answered[0].url}, as behind a gateway, and none of them can be told apart",
            remedy="Give the members' own client URLs: `etcdctl member list -w table` shows what they advertise.",
        )
    record = _record(store, name, cluster_id, listed, urls, tls, purpose, known)
    with store.lock(name, f"cluster.attach {name}", on_wait=progress):
        # Another command may have taken the name, or attached it, while we asked.
        current = _known(store, name)
        _refuse_other(store, name, current, cluster_id)
        if current is None or current != record:
            store.save(record)
    remember(store)
    for member in record.members:
        if not member.client_url:
            progress(f"{member.name} is recorded, and not reached from here: give an endpoint of its when there is one")
    return Attached(Cluster.attach(name, store=store), known is None, quorum)


# -- what is there already


def _known(store: Store, name: str) -> ClusterRecord | None:
    """Give the record of the attached cluster of that name, or None; raise Refused for one that etcdops made."""
    if not store.exists(name):
        return None
    record = store.load(name)
    if not foreign.is_foreign(record):
        raise Refused(
            f"there already is a cluster {name!r} in {store.root}, which etcdops made",
            remedy="Give another name with --cluster NAME.",
        )
    return record


def _refuse_other(store: Store, name: str, known: ClusterRecord | None, cluster_id: int) -> None:
    identity = _identity(cluster_id)
    if known and known.id != identity:
        raise Refused(
            f"{name!r} is recorded as the cluster {known.id}, and these endpoints lead to {identity}: another one, or"
            " one that was restored",
            remedy=f"Give another name with --cluster NAME; or forget it first: `down-env --purge --cluster {name}`.",
        )
    for other in store.names():
        try:
            record = store.load(other)
        except StateError:
            continue
        if other != name and foreign.is_foreign(record) and record.id == identity:
            raise Refused(
                f"that cluster ({identity}) is attached already, as {other!r}: under two names, two operations could"
                " change it at the same time",
                remedy=f"Use --cluster {other}; or forget it first: `down-env --purge --cluster {other}`.",
            )


def _identity(cluster_id: int) -> str:
    return hex_id(cluster_id)


# -- what the endpoints say


def _nobody(heard: Iterable[Heard], tls: Tls | None) -> Refused:
    found = _troubles(heard, tls)
    return Refused(
        "no endpoint answers: " + "; ".join(f"{url}: {trouble.said}" for url, trouble in found),
        remedy=" ".join(dict.fromkeys(trouble.remedy for _, trouble in found)) + " Nothing was recorded.",
    )


def _troubles(heard: Iterable[Heard], tls: Tls | None) -> list[tuple[str, Trouble]]:
    """Look, at all of them at once, why endpoints do not answer."""
    silent = [(each.url, each.error) for each in heard if each.error]
    with ThreadPoolExecutor(max_workers=len(silent) or 1) as pool:
        troubles = pool.map(lambda each: diagnose(each[0], tls, each[1]), silent)
        return [(url, trouble) for (url, _), trouble in zip(silent, troubles, strict=True)]


def _one_cluster(answered: Sequence[Heard]) -> int:
    found: dict[int, list[str]] = {}
    for each in answered:
        found.setdefault(each.cluster_id, []).append(each.url)
    if len(found) > 1:
        said = "; ".join(f"{', '.join(urls)}: {hex_id(cluster_id)}" for cluster_id, urls in found.items())
        raise Refused(
            f"the endpoints lead to different clusters: {said}",
            remedy="Give those of one cluster alone. Nothing was recorded.",
        )
    return next(iter(found))


def _no_list(error: EtcdError) -> Refused:
    remedy = "Look at the members' logs, where they run."
    if error.code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT"):
        remedy = "Give --cert and --key of a client certificate whose common name is a user that may list members."
    return Refused(f"no endpoint lists the members; last: {error}", remedy=f"{remedy} Nothing was recorded.")


def _reach(
    listed: Sequence[MemberInfo],
    answered: Sequence[Heard],
    known: ClusterRecord | None,
    cluster_id: int,
    tls: Tls | None,
    progress: Callable[[str], None],
) -> dict[int, Heard | None]:
    """Give, by ID, the endpoint at which each member was heard: given, or recorded before, or advertised."""
    found: dict[int, Heard | None] = {info.id: None for info in listed}
    for each in answered:
        if not each.member_id:
            progress(f"several members answer behind {each.url}, as behind a gateway: it stands for none of them")
        elif each.member_id not in found:
            progress(f"{each.url} is {hex_id(each.member_id)}, which is not in the member list: it was removed")
        elif other := found[each.member_id]:
            progress(f"{each.url} is the same member as {other.url}, which is recorded")
        else:
            found[each.member_id] = each
    before = {int(m.ref, 16): m.client_url for m in known.members if m.client_url} if known else {}
    candidates = {
        info.id: list(dict.fromkeys([*([before[info.id]] if info.id in before else []), *_usable(info, tls)]))
        for info in listed
        if found[info.id] is None
    }
    tried = ask((url for urls in candidates.values() for url in urls), tls)
    for info in listed:
        for url in candidates.get(info.id, []):
            there, who = tried[url], info.name or hex_id(info.id)
            if there.error:
                progress(f"{who} advertises {url}, where nobody answers from here")
            elif (there.member_id, there.cluster_id) != (info.id, cluster_id):
                who_is = hex_id(there.member_id) if there.member_id else "several members"
                progress(f"{who} ({hex_id(info.id)}) advertises {url}, and from here that is {who_is}: not used")
            else:
                found[info.id] = there
                if url != before.get(info.id):
                    progress(f"{who} is reached at {url}, which it advertises")
                break
    return found


def _usable(info: MemberInfo, tls: Tls | None) -> list[str]:
    """Give the advertised client URLs that could be asked at all: etcd takes sockets, and paths, too."""
    urls = []
    for text in info.client_urls:
        try:
            url = parse_url(text)
        except SpecError:
            continue
        if tls or url.startswith("http://"):
            urls.append(url)
    return urls


# -- what is recorded


def _record(
    store: Store,
    name: str,
    cluster_id: int,
    listed: Sequence[MemberInfo],
    urls: dict[int, Heard | None],
    tls: Tls | None,
    purpose: str,
    known: ClusterRecord | None,
) -> ClusterRecord:
    names = names_for(listed)
    ordered = sorted(listed, key=lambda info: (names[info.id].lower(), info.id))
    told = [heard.status.version for heard in urls.values() if heard and heard.status]
    spec = ClusterSpec(
        name,
        tuple(MemberSpec(names[info.id], foreign=True) for info in ordered),
        tls=tls,
        purpose=purpose or (known.spec.purpose if known else "production"),
    )
    return ClusterRecord(
        schema=SCHEMA,
        id=_identity(cluster_id),
        spec=spec,
        runtime=foreign.RUNTIME,
        token="",
        state_dir=str(store.root),
        members=tuple(_member(info, names[info.id], urls[info.id]) for info in ordered),
        # The lowest: what is known to be bad of any of them is to be said.
        etcd_version=min(told, key=versions.parse_version, default=known.etcd_version if known else ""),
        created=known.created if known else datetime.now(timezone.utc).isoformat(timespec="seconds"),
        bootstrapped=True,
    )


def _member(info: MemberInfo, name: str, heard: Heard | None) -> MemberRecord:
    url = heard.url if heard else ""
    return MemberRecord(
        name=name,
        host=(urlsplit(url).hostname or "") if url else "",
        client_url=url,
        peer_url=info.peer_urls[0] if info.peer_urls else "",
        data=DataRef(""),
        log="",
        ref=hex_id(info.id),
        wanted="running",
        etcd_name=info.name if info.name != name else "",
    )


def names_for(listed: Sequence[MemberInfo]) -> dict[int, str]:
    """Give, by ID, what members are called here: as etcd calls them, where that is one name for one member.

    etcd takes any name, also the same for several ("default"), and has none for a member that never started. Such a
    one gets its ID, alone or after its name, so that it has the same name whoever else comes or goes.
    """
    plain = {info.id: re.sub(r"[^A-Za-z0-9._-]", "-", info.name).lstrip("._-")[:200] for info in listed}
    times = Counter(plain.values())
    names = {}
    for info in listed:
        name = plain[info.id]
        unique = name and times[name] == 1
        names[info.id] = name if unique else f"{name}-{hex_id(info.id)}".lstrip("-")
        assert is_foreign_name(names[info.id])
    return names
