"""Snapshots of a cluster in files: save one, verify it, list those that there are, and prune old ones.

    >>> from etcdops.snapshots.saving import save_snapshot
    >>> with Cluster.create() as cluster:
    ...     snapshot = save_snapshot(cluster)
    ...     print(snapshot.level)
    hash

A snapshot is one member's database, as it was at one revision, with the SHA-256 of it as the last 32 bytes. Beside it
is a manifest that says of which cluster it is, how far it goes, and what was verified when.
"""
