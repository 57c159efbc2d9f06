"""Whether hosts are fit for members: all of it for `hosts.check`, and what matters before members are put there.

Looks, and changes nothing on any of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import msgspec

from etcdops.errors import HostUnreachable, RuntimeUnavailable
from etcdops.remote.connection import CONNECT_S
from etcdops.remote.facts import CLOCK_S, Asked, HostFacts, HostFinding, Seen, look
from etcdops.remote.fan_out import Hosts, Outcome, fan_out, told_together
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import HostSpec, Inventory, read_inventory
from etcdops.remote.peers import Peer, PeerLink, peer_of, try_peers
from etcdops.remote.ssh_config import resolve

__all__ = ["HostsReport", "check_hosts", "demand_fit", "placed", "unfit"]

#: How long a look before a change may take. What is asked there has limits of its own.
_BEFORE_S = 45.0


class HostsReport(msgspec.Struct, frozen=True):
    """What was seen of all hosts. `verdict` is "fit", "warnings" or "unfit", as the gravest finding has it."""

    schema: int
    verdict: str
    hosts: tuple[HostFacts, ...]
    peers: tuple[PeerLink, ...]
    findings: tuple[HostFinding, ...]


def check_hosts(
    hosts: str | os.PathLike[str] | Inventory,
    *,
    image: str = "",
    ports: tuple[int, ...] = (),
    timeout_s: float = 30.0,
    accept_new_host_keys: bool = False,
) -> HostsReport:
    """Give what every host says of itself, and whether each reaches every other.

    `hosts` is an inventory, or what `read_inventory` takes. `image` has to be there and `ports` free, if they are
    given. No host is waited for longer than `timeout_s` seconds, twice; one that does not answer is a finding, and the
    others are still shown. With `accept_new_host_keys`, keys of hosts of which nothing is known are recorded here.
    Raises SpecError for an inventory that cannot be used, and for what is no port.
    """
    inventory = hosts if isinstance(hosts, Inventory) else read_inventory(os.fspath(hosts))
    asked = Asked(image, ports)
    findings: list[HostFinding] = []
    peers: dict[str, Peer] = {}
    facts: dict[str, HostFacts] = {}
    for spec in inventory.hosts:
        facts[spec.name], peer = placed(spec)
        if peer:
            peers[spec.name] = peer
    findings += _of_places(peers.values())
    connect_s = timeout_s if timeout_s < CONNECT_S else None
    with Hosts(inventory, connect_timeout_s=connect_s, accept_new_host_keys=accept_new_host_keys) as opened:
        seen = opened.each(lambda host: look(host, facts[host.name], asked), timeout_s=timeout_s)
        for name, outcome in seen.items():
            findings += _found(name, outcome)
        links: list[PeerLink] = []
        answering = [host for host in opened if seen[host.name].error is None]
        others = {host.name: [peer for name, peer in peers.items() if name != host.name] for host in opened}
        tried = _try_all(answering, others, timeout_s)
        for name, wanted in others.items():
            links += tried.get(name) or [_unknown(name, peer) for peer in wanted]
    findings += [*_of_links(links, {host.name for host in answering}), *_of_all(list(facts.values()))]
    findings.sort(key=lambda finding: finding.severity != "error")
    worst = {finding.severity for finding in findings}
    verdict = "unfit" if "error" in worst else "warnings" if worst else "fit"
    return HostsReport(1, verdict, tuple(facts.values()), tuple(links), tuple(findings))


def demand_fit(
    hosts: Sequence[SSHHost], *, image: str = "", progress: Callable[[str], None] = lambda said: None
) -> dict[str, HostFacts]:
    """See that members can run on hosts, before anything is changed there; gives what was seen, by host.

    It is what `hosts.check` looks at, but for what only a person wants to know: all hosts at the same time, each
    command in one go. `image` has to be for the hosts' architecture where it is there. Warnings go to `progress`.
    Raises RuntimeUnavailable with all that keeps members from running, each with what to do.
    """
    facts, peers = {}, {}
    for host in hosts:
        facts[host.name], peer = placed(host.spec)
        if peer:
            peers[host.name] = peer
    findings = _of_places(peers.values())
    asked = Asked(image, quick=True)
    seen = fan_out(hosts, lambda host: look(host, facts[host.name], asked), timeout_s=_BEFORE_S)
    for name, outcome in seen.items():
        findings += _found(name, outcome)
    # That one which does not answer is not reached by the others either, needs not be said.
    answering = {host.name: host for host in hosts if seen[host.name].error is None and host.name in peers}
    others = {name: [peers[other] for other in answering if other != name] for name in answering}
    if len(answering) > 1:
        tried = _try_all(list(answering.values()), others, _BEFORE_S)
        findings += _of_links([link for links in tried.values() for link in links], set(answering))
    findings += _of_all(list(facts.values()))
    if problem := unfit(findings):
        problem.remedy += " Nothing was changed on any host."
        raise problem
    for finding in findings:
        # Who creates a cluster looks for an image, and tells himself where there is none.
        if finding.code != "image-missing":
            progress(str(finding))
    return facts


def unfit(findings: Iterable[HostFinding]) -> RuntimeUnavailable | None:
    """Give the error for all that is more than a warning, None if nothing is."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return None
    message, remedy = told_together((each.message, each.remedy) for each in errors)
    return RuntimeUnavailable(message, remedy=remedy)


def _of_places(peers: Iterable[Peer]) -> list[HostFinding]:
    """Give the hosts that are one and the same address, whatever their names are."""
    found = []
    there: dict[tuple[str, int], str] = {}
    for peer in peers:
        if (first := there.setdefault((peer.reached, peer.port), peer.name)) != peer.name:
            found.append(
                HostFinding.of(
                    peer.name,
                    "duplicate-address",
                    f"{first} and {peer.name} are the same host: both are at {peer.reached}, port {peer.port}",
                    "Name each machine once, or correct its address.",
                )
            )
    return found


def placed(spec: HostSpec) -> tuple[HostFacts, Peer | None]:
    """Give the facts of a host that nobody has looked at yet, and where its peers reach it, if that can be told."""
    try:
        target = resolve(spec)
    except HostUnreachable:
        # It is told of when it is connected to.
        return HostFacts(spec.name, spec.address or spec.name, spec.peer_address), None
    peer = peer_of(target, spec.peer_address)
    return HostFacts(spec.name, target.host, peer.address), peer


def _found(name: str, outcome: Outcome[Seen]) -> list[HostFinding]:
    if outcome.error is None:
        return outcome.checked().findings
    code = "unreachable" if isinstance(outcome.error, HostUnreachable) else "no-answer"
    return [HostFinding.of(name, code, str(outcome.error), outcome.error.remedy)]


def _try_all(
    answering: Sequence[SSHHost], others: dict[str, list[Peer]], timeout_s: float
) -> dict[str, list[PeerLink]]:
    tried = fan_out(answering, lambda host: try_peers(host, others[host.name]), timeout_s=timeout_s)
    return {name: outcome.value for name, outcome in tried.items() if outcome.value is not None}


def _unknown(name: str, peer: Peer) -> PeerLink:
    return PeerLink(name, peer.name, peer.address, peer.port, "unknown", f"{name} could not be asked")


def _of_links(links: list[PeerLink], answering: set[str]) -> list[HostFinding]:
    found = []
    for link in links:
        if link.source not in answering:
            # That it does not answer is said already.
            continue
        where = f"{link.address}, port {link.port}"
        if link.result == "unreachable":
            found.append(
                HostFinding.of(
                    link.source,
                    "peer-unreachable",
                    f"{link.source} does not reach {link.target} ({where}): {link.detail}",
                    "Members on the two could not talk to each other: see firewalls and routes, or give the address"
                    " that works between hosts as `peer_address`.",
                )
            )
        elif link.result == "unknown":
            found.append(
                HostFinding.of(
                    link.source,
                    "peer-unknown",
                    f"whether {link.source} reaches {link.target} ({where}) could not be tried: {link.detail}",
                    "Allow TCP forwarding in its sshd_config, or install bash or nc there.",
                )
            )
    return found


def _of_all(facts: list[HostFacts]) -> list[HostFinding]:
    """Give what is amiss only when hosts are seen side by side."""
    found = []
    engines: dict[str, str] = {}
    for each in facts:
        if each.engine_id and (first := engines.setdefault(each.engine_id, each.name)) != each.name:
            found.append(
                HostFinding.of(
                    each.name,
                    "same-engine",
                    f"{first} and {each.name} are the same Docker engine",
                    "What one machine takes down is then more than one host: name each machine once.",
                )
            )
    kinds = {each.architecture: each.name for each in facts if each.architecture}
    if len(kinds) > 1:
        said = ", ".join(f"{name} is {kind}" for kind, name in sorted(kinds.items()))
        found.append(
            HostFinding.of(
                next(iter(kinds.values())),
                "architectures-differ",
                f"hosts have different architectures: {said}",
                "Each needs an image for its own.",
            )
        )
    clocks = [each for each in facts if each.clock_offset_ms is not None]
    if len(clocks) > 1:
        early, late = (pick(clocks, key=lambda each: each.clock_offset_ms or 0.0) for pick in (min, max))
        apart = (late.clock_offset_ms or 0.0) - (early.clock_offset_ms or 0.0)
        if apart - (late.clock_error_ms or 0.0) - (early.clock_error_ms or 0.0) > 1000 * CLOCK_S:
            found.append(
                HostFinding.of(
                    late.name,
                    "clocks-differ",
                    f"the clocks of {early.name} and {late.name} are {apart / 1000:.1f} s apart",
                    "Have both follow a time server (chrony, systemd-timesyncd).",
                )
            )
    return found
