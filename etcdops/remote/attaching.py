"""Taking up a cluster from its hosts alone: what is kept there is found by labels, checked, and written down here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from etcdops.docker.on_host import HostEngine
from etcdops.errors import EtcdopsError, Refused, SpecError, StateError
from etcdops.placement import remember
from etcdops.remote import keeping, kept
from etcdops.remote.fan_out import fan_out
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import HostSpec, Inventory
from etcdops.remote.turns import note_version, read_newest, write_pem_files
from etcdops.spec import is_valid_name
from etcdops.state import Store, remove_tree
from etcdops.tls.layout import TLS_DIR_MODE, directory_of, is_own

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.docker.engine import Container
    from etcdops.remote.keeping import Version
    from etcdops.remote.kept import Kept

__all__ = ["AttachedHosts", "attach_hosts"]

_LOOK_S = 40.0

Progress = Callable[[str], None]


class AttachedHosts(NamedTuple):
    """A cluster that was taken up from its hosts: which version of what is kept there, by whom and when."""

    cluster: Cluster
    serial: int
    by: str
    written: str


def attach_hosts(
    inventory: Inventory, name: str = "", *, store: Store | None = None, progress: Progress = lambda text: None
) -> AttachedHosts:
    """Take up the cluster that there is on these hosts, and give it; nothing is changed there.

    Where there are several, `name` (or an id) says which. What is kept is read from whichever host has the newest that
    is whole; hosts that do not answer, and what is not as it should be, are told by `progress`.

    Raises Refused, and writes nothing, where no host answers, no such cluster is there, several are, or a record has
    the name here already; StateError where what is kept cannot be used.
    """
    from etcdops.cluster import Cluster

    store = store or Store.find()
    engines = {spec.name: HostEngine(SSHHost(spec)) for spec in inventory.hosts}
    versions = _choose(_find(engines, progress), name, inventory)
    cluster = versions[0].cluster
    _refuse_known(store, cluster)
    try:
        found = read_newest(engines, versions, progress)
    except StateError:
        # A newer version may have taken the place of them all just now.
        again = _choose(_find(engines, lambda text: None), versions[0].cluster_id, inventory)
        if {each.volume for each in again} == {each.volume for each in versions}:
            raise
        versions = again
        found = read_newest(engines, versions, progress)
    if found.record.spec.name != cluster:
        raise StateError(f"what is kept of {cluster} calls it {found.record.spec.name}")
    _tell_older(versions, found, progress)
    hosts = _as_reached(found, versions, inventory, progress)
    _compare(engines, versions, found, progress)
    with store.lock(cluster, f"cluster.attach {cluster}", on_wait=progress):
        _refuse_known(store, cluster)
        attached = _write(store, found, hosts)
        remember(store)
    manifest = found.manifest
    return AttachedHosts(Cluster.attach(attached, store=store), manifest.serial, manifest.by, manifest.written)


def _find(engines: Mapping[str, HostEngine], progress: Progress) -> list[Version]:
    ended = fan_out(
        [engine.ssh for engine in engines.values()],
        lambda host: keeping.versions_on(engines[host.name]),
        timeout_s=_LOOK_S,
    )
    silent = [outcome.error for outcome in ended.values() if outcome.error is not None]
    if len(silent) == len(ended):
        first = silent[0]
        raise type(first)(f"no host answers: {'; '.join(map(str, silent))}", remedy=first.remedy)
    for error in silent:
        progress(f"going on without a host: {error}")
    return [each for outcome in ended.values() if outcome.error is None for each in outcome.checked()]


def _choose(versions: list[Version], name: str, inventory: Inventory) -> list[Version]:
    """Give what is kept of the one cluster that is meant."""
    there = {each.cluster_id: each.cluster for each in versions if is_valid_name(each.cluster)}
    if not there:
        raise Refused(
            f"no cluster is kept on {', '.join(inventory.names)}",
            remedy="`up-env --hosts …` makes one. One of an earlier release is kept there by the next command that"
            " changes something, such as `tls.renew`, where its record is.",
        )
    said = ", ".join(f"{cluster} ({id_})" for id_, cluster in sorted(there.items(), key=lambda pair: pair[1]))
    meant = [id_ for id_, cluster in there.items() if name in ("", cluster, id_)]
    if not meant:
        raise Refused(f"there is no cluster {name!r} on these hosts: there is {said}", remedy="Choose with --cluster.")
    if len(meant) > 1:
        raise Refused(
            f"there are several clusters on these hosts: {said}", remedy="Choose one with --cluster, by name or id."
        )
    return [each for each in versions if each.cluster_id == meant[0] and each.cluster == there[meant[0]]]


def _refuse_known(store: Store, name: str) -> None:
    if store.exists(name):
        raise Refused(
            f"there already is a cluster {name!r} in {store.root}",
            remedy="If it is this one, it is taken up already: the next command that changes it takes up what others"
            " have changed. If it is another, attach from another directory, or name one with ETCDOPS_STATE_DIR.",
        )


def _tell_older(versions: list[Version], found: Kept, progress: Progress) -> None:
    manifest = found.manifest
    newest = {each.host: each.serial for each in sorted(versions, key=lambda each: (each.host, each.serial))}
    behind = [f"{host} has version {serial}" for host, serial in newest.items() if serial < manifest.serial]
    if behind:
        progress(f"the hosts differ: {', '.join(behind)}; taken is version {manifest.serial}, of {manifest.written}")


def _as_reached(found: Kept, versions: list[Version], inventory: Inventory, progress: Progress) -> tuple[HostSpec, ...]:
    """Give the cluster's hosts as this operator reaches them, whatever the inventory calls them."""
    given = {each.name: each for each in inventory.hosts}
    called = {each.called: each.host for each in versions}
    hosts = []
    for each in found.record.hosts:
        own = given.get(called.get(each.name, each.name))
        if own is None:
            progress(
                f"{each.name}, which has members too, is not among --hosts: it is looked for at {each.address},"
                " without a key or a Docker command of its own"
            )
            hosts.append(each)
            continue
        address = own.address or own.name
        hosts.append(msgspec.structs.replace(own, name=each.name, address=address, peer_address=each.peer_address))
    return tuple(hosts)


def _compare(engines: Mapping[str, HostEngine], versions: list[Version], found: Kept, progress: Progress) -> None:
    """Hold what was kept against the containers and volumes that are there; raises Refused where there is nothing."""
    record = found.record
    called = {each.host: each.called for each in versions}
    ended = fan_out(
        [engines[host].ssh for host in called], lambda host: _seen(engines[host.name], record.id), timeout_s=_LOOK_S
    )
    seen = {called[host]: outcome.checked() for host, outcome in ended.items() if outcome.error is None}
    there = {each.member: host for host, (containers, _) in seen.items() for each in containers if each.member}
    volumes = {volume for _, names in seen.values() for volume in names}
    asked = [member for member in record.members if member.host in seen]
    if asked and not there and not any(member.data.place in volumes for member in asked):
        raise Refused(
            f"what is kept of {record.spec.name} is all that is left of it: no container and no data of its members is"
            f" on {', '.join(seen)}",
            remedy=f"Remove it there: `docker volume rm {versions[0].volume}`.",
        )
    for member in asked:
        if there.get(member.name) != member.host:
            lost = "" if member.data.place in volumes else ", and its data is gone"
            progress(f"{member.name} has no container on {member.host}{lost}: see `status`")
    for name, host in sorted(there.items()):
        if name not in record.spec.names:
            progress(f"{host} has a container of a member {name} that the record does not know: see `status`")


def _seen(engine: HostEngine, cluster_id: str) -> tuple[list[Container], list[str]]:
    return engine.containers(cluster_id=cluster_id), engine.named("volume", cluster_id=cluster_id)


def _write(store: Store, found: Kept, hosts: tuple[HostSpec, ...]) -> str:
    """Write the record and the PEM files: first beside their place, where they are looked at, then all at once."""
    name = found.record.spec.name
    directory = store.make_dir(store.cluster_dir(name))
    record = kept.localised(found, str(store.root), directory_of(directory), hosts)
    try:
        if found.files:
            with tempfile.TemporaryDirectory(prefix=".attach-", dir=directory) as temporary:
                aside = Path(temporary) / "tls"
                aside.mkdir(mode=TLS_DIR_MODE)
                write_pem_files(aside, found.files)
                _check_pem_files(found, aside, hosts)
                remove_tree(directory_of(directory))
                os.replace(aside, directory_of(directory))
        store.save(record)
        note_version(store, name, found.manifest.serial, kept.digest(record, found.files))
    except BaseException:
        remove_tree(directory)
        raise
    return name


def _check_pem_files(found: Kept, directory: Path, hosts: tuple[HostSpec, ...]) -> None:
    """Raise StateError where the files that were kept are not an authority and what it has signed."""
    from etcdops.foreign.endpoints import client_context
    from etcdops.tls.authority import Authority

    tls = kept.localised(found, "", directory, hosts).spec.tls
    assert tls
    try:
        client_context(tls)
        if is_own(found.record.spec):
            authority = Authority.load(tls.ca, tls.ca_key)
            strangers = [
                name for name, pem in found.files.items() if name != "ca.key" and not authority.has_signed(pem)
            ]
            if strangers:
                raise SpecError(f"the authority has not signed {', '.join(strangers)}")
    except EtcdopsError as error:
        raise StateError(
            f"the certificates that were kept of {found.record.spec.name} cannot be used:"
            f" {str(error).replace(f'{directory}/', '')}",
            remedy="Whoever has its record here: `tls.renew` makes new ones, and keeps them on the hosts. Nothing was"
            " written.",
        ) from error
