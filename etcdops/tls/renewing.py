"""New certificates for members that run: plan, act, prove.

etcd reads its certificate and its key anew for each handshake, the certificate first (GetCertificate in
client/pkg/transport/listener.go, which calls tlsutil.NewCert), so that a new pair is served at once, and no member is
started anew; connections that there are go on with the old one. As both are in one file, which is replaced by a rename,
none of etcd's two reads finds half of one pair; a rename that comes between the two lets that one handshake fail, and
whoever dialled dials again: etcd's peers and gRPC do so by themselves.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from etcdops.errors import EtcdopsError, Refused, WaitTimeout
from etcdops.foreign import is_foreign
from etcdops.operations import pending
from etcdops.operations.plan import Plan, Step, carry_out
from etcdops.runtimes.base import CanGiveCertificates
from etcdops.tls import expiry, leaves, serving
from etcdops.tls.authority import BACKDATED, LEAF_LIFETIME
from etcdops.tls.layout import is_own
from etcdops.tls.showing import show

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.operations.pending import Pending
    from etcdops.runtimes.base import MemberState, Runtime
    from etcdops.state import ClusterRecord

__all__ = ["OPERATION", "plan_renew", "renew"]

OPERATION = "tls.renew"

#: How long a member may take to serve what has been renewed, and to be among its peers again.
_SERVED_S = 30.0

Confirm = Callable[[Plan], None]
Progress = Callable[[str], None]


def _agreed(plan: Plan) -> None:
    pass


def _silent(text: str) -> None:
    pass


def renew(
    cluster: Cluster,
    names: Sequence[str] = (),
    *,
    dry_run: bool = False,
    confirm: Confirm = _agreed,
    progress: Progress = _silent,
) -> Plan:
    """Make new pairs for the named members, or for all and the operator, and give the plan that did it.

    No member is started anew, and what runs is proved to serve the new pair, and to turn strangers away. With `dry_run`
    the plan is only given. Interrupted, the same call goes on: pairs that it has made are not made again. Raises
    SpecError for what is no member; Refused, before anything is changed, for certificates of somebody else's authority,
    and where the authority's files are missing or others can read its key; PartlyChanged when a step fails.
    """
    record = cluster.record
    _refuse_strange(record)
    for name in names:
        record.member(name)
    target = ",".join(dict.fromkeys(names))
    with cluster.locked(f"{OPERATION} {target}".rstrip(), progress=progress):
        cluster.save(cluster.runtime.adopt(cluster.record))
        record = cluster.record
        begun = pending.refuse_unfinished(cluster, OPERATION, target)
        names = tuple(begun.target.split(",")) if begun and begun.target else tuple(dict.fromkeys(names))
        leaves.check_authority(record)
        done = _made_since(record, begun.since) if begun else frozenset()
        plan = plan_renew(record, cluster.runtime, cluster.runtime.states(record), names, done=done)
        if dry_run:
            return plan
        confirm(plan)
        target = ",".join(names)
        again = f"{OPERATION} --member {target}" if target else OPERATION
        begun = begun or pending.begin(cluster, OPERATION, target, again=again, back="")
        _carry_out(cluster, plan, begun, progress)
        return plan


def _refuse_strange(record: ClusterRecord) -> None:
    name = record.spec.name
    if record.spec.tls is None:
        raise Refused(f"{name} has no TLS: there is nothing to renew", remedy="`up-env --tls` creates one that has it.")
    if is_foreign(record) or not is_own(record.spec):
        raise Refused(
            f"the certificates of {name} are not made by etcdops",
            remedy="Put new ones in the place of the old files; etcd reads them at the next handshake. `tls.show` shows"
            " what is served then.",
        )


def _made_since(record: ClusterRecord, since: str) -> frozenset[str]:
    """Give whose pairs have been made since a time: by the operation that was interrupted."""
    begun = datetime.fromisoformat(since)
    found = expiry.certificates(record)
    return frozenset(each.whose for each in found if datetime.fromisoformat(each.not_before) + BACKDATED >= begun)


def plan_renew(
    record: ClusterRecord,
    runtime: Runtime,
    states: dict[str, MemberState],
    names: Sequence[str],
    *,
    done: Collection[str] = (),
) -> Plan:
    """Give the plan, or what is left of it, by which pairs are renewed. Changes nothing.

    Without `names` it is about all members and the operator. `done` are those whose pair has been made already.
    """
    gives = isinstance(runtime, CanGiveCertificates)
    steps = []
    for name in names or record.spec.names:
        path = record.spec.member(name).cert
        if name not in done:
            steps.append(Step("issue", name, f"make a new certificate and key for {name}", _by_openssl(record, name)))
        if gives:
            ref = record.member(name).ref[:12] or "CONTAINER"
            by_hand = shlex.join(["docker", "cp", path, f"{ref}:/etc/etcd-tls/pair.pem"])
            if host := record.member(name).host:
                folder, file = os.path.split(path)
                packed = shlex.join(["tar", "-C", folder, f"--transform=s/{file}/pair.pem/", "-cf", "-", file])
                by_hand = f"{packed} | ssh {shlex.quote(host)} docker cp - {ref}:/etc/etcd-tls"
            steps.append(Step("give", name, f"put them into the container of {name}", by_hand))
        if states[name] in ("running", "isolated"):
            address = record.member(name).client_url.partition("://")[2]
            by_hand = f"openssl s_client -connect {address} </dev/null | openssl x509 -noout -serial -enddate"
            text = f"see that {name} serves the new one, at the next handshake"
            steps.append(Step("served", name, text, by_hand, waits=True))
    if not names:
        if "operator" not in done:
            text = "make a new certificate and key for the operator"
            steps.append(Step("issue", "", text, _by_openssl(record, "")))
        if gives:
            tls = record.spec.tls
            assert tls
            by_hand = shlex.join(["docker", "cp", tls.client_cert, "CONTAINER:/etc/etcd-tls/pair.pem"])
            steps.append(Step("give", "", "put them into the client's container", by_hand))
    text = "prove it: members serve the new certificates and turn strangers away, and none was started anew"
    steps.append(Step("prove", "", text, "etcdops tls.show", waits=True))
    idle = [name for name in names or record.spec.names if states[name] not in ("running", "isolated")]
    notes = (f"{', '.join(idle)} does not run: the new one is served once it does",) if idle else ()
    return Plan(OPERATION, record.spec.name, ", ".join(names), tuple(steps), notes=notes)


def _by_openssl(record: ClusterRecord, name: str) -> str:
    """Give the plain commands that make a pair: a member's, or the operator's for ""."""
    tls = record.spec.tls
    assert tls
    path = record.spec.member(name).cert if name else tls.client_cert
    usage = "serverAuth,clientAuth" if name else "clientAuth"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    argv += ["-CA", tls.ca, "-CAkey", tls.ca_key, "-days", str(LEAF_LIFETIME.days)]
    argv += ["-subj", f"/O=etcdops/CN={name or leaves.OPERATOR}", "-addext", f"extendedKeyUsage={usage}"]
    argv += ["-addext", "basicConstraints=critical,CA:false"]
    if name:
        argv += [
            "-addext",
            f"subjectAltName={','.join(_general(each) for each in leaves.hosts_of(record.member(name)))}",
        ]
    argv += ["-out", "new.pem", "-keyout", "new.key"]
    joined = f"(umask 077; cat new.pem new.key > {shlex.quote(f'{path}.new')})"
    return f"{shlex.join(argv)} && {joined} && mv {shlex.quote(f'{path}.new')} {shlex.quote(path)}"


def _general(host: str) -> str:
    return f"IP:{host}" if ":" in host or host.replace(".", "").isdigit() else f"DNS:{host}"


def _carry_out(cluster: Cluster, plan: Plan, begun: Pending, progress: Progress) -> None:
    before = {member.name: member.ref for member in cluster.record.members}
    runtime = cluster.runtime

    def issue(step: Step) -> None:
        leaves.issue(cluster.record, [step.member] if step.member else [], operator=not step.member)

    def give(step: Step) -> None:
        if isinstance(runtime, CanGiveCertificates):
            runtime.give_certificates(cluster.record, step.member)

    acts = {
        "issue": issue,
        "give": give,
        "served": lambda step: _wait_served(cluster, step.member, progress),
        "prove": lambda step: _prove(cluster, before, begun, progress),
    }
    with pending.going_on(cluster, begun, progress):
        carry_out(cluster, plan, acts, progress, run=begun.run, commands=False)


def _wait_served(cluster: Cluster, name: str, progress: Progress) -> None:
    """Wait until both ports of a member serve what is here, as far as this machine reaches them."""
    record = cluster.record
    here = expiry.read(record.spec.member(name).cert, name)
    deadline = time.monotonic() + _SERVED_S
    for port in serving.PORTS:
        address = serving.address_of(cluster, name, port)
        if address is None:
            progress(f"the {port} port of {name} is not reached from here")
            continue
        while True:
            seen = serving.served(address, record.spec.tls, name)
            if isinstance(seen, expiry.Certificate) and here and seen.fingerprint == here.fingerprint:
                progress(f"{name} serves {seen.serial[:16]}… on its {port} port, until {seen.not_after[:10]}")
                break
            if cluster.member(name).state() not in ("running", "isolated"):
                progress(f"{name} does not run any more: the new certificate is served once it does")
                return
            if time.monotonic() > deadline:
                last = seen if isinstance(seen, str) else f"it serves {seen.serial}, until {seen.not_after}"
                raise WaitTimeout(
                    f"the {port} port of {name} does not serve its new certificate after {_SERVED_S:.0f} s: {last}",
                    remedy=f"Look at `tls.show`, and at `logs --member {name}`.",
                )
            time.sleep(0.05)


def _prove(cluster: Cluster, before: dict[str, str], begun: Pending, progress: Progress) -> None:
    """See that what runs is what ran, serves what is here, serves reads again, and turns strangers away."""
    record = cluster.record
    adopted = cluster.runtime.adopt(record)
    anew = [member.name for member in adopted.members if before.get(member.name) not in ("", member.ref)]
    if anew:
        raise EtcdopsError(
            f"{', '.join(anew)} was started anew meanwhile, and not by this", remedy="Look at `status` and `logs`."
        )
    chosen = begun.target.split(",") if begun.target else list(record.spec.names)
    shown = show(cluster)
    other = [f"the {each.port} port of {each.member}" for each in shown.served if each.result == "another"]
    other = [said for said in other if said.rpartition(" ")[2] in chosen]
    if other:
        raise EtcdopsError(f"{', '.join(other)} serves another certificate", remedy="Look at `tls.show`.")
    running = [name for name, state in cluster.runtime.states(record).items() if state == "running"]
    if len(running) >= record.spec.quorum:
        # Where certificates had ended, members find each other only now.
        cluster.wait_serving(running, timeout_s=_SERVED_S)
    if shown.proof.wrong:
        shown = msgspec.structs.replace(shown, proof=serving.prove(cluster))
    wrong = shown.proof.wrong
    if wrong:
        each = wrong[0]
        raise EtcdopsError(
            f"the {each.port} port of {each.member} has {each.who} {each.result} ({each.detail})",
            remedy=f"Look at `tls.show`, and at `logs --member {each.member}`.",
        )
    right = sum(each.result == "turned away" for each in shown.proof.encounters)
    progress(f"strangers were turned away {right} times, the operator never")
