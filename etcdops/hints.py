"""What to do about what etcd says: its servers' errors, and the lines with which a member dies.

The texts are those of etcd's api/v3rpc/rpctypes/error.go (3.4 to 3.7) and of its log; what they mean in practice is
from its issues. An error that is not here needs no hint, or nobody knows one.
"""

from __future__ import annotations

__all__ = ["HINTS", "remedy_for"]

_NO_ANSWER = "No answer in time: the member is frozen or cut off, or there is no quorum. Look at `status`."

#: A part of what is said, and what to do then. In this order: the first whose words are in a text is meant.
HINTS = (
    (
        "re-configuration failed due to not enough started members",
        (
            "A member that was added and never started counts for the quorum: start it, or take it back with"
            " `member.undo` or `ctl -- member remove ID`; `status` names it."
        ),
    ),
    (
        "unhealthy cluster",
        (
            "etcd changes members only while each voter has been connected for 5 s: try again in a few seconds. If a"
            " voter is down, bring it back, or `member.replace NAME` if it is lost; `status --gate` names it."
        ),
    ),
    (
        "membership: too many learner members",
        (
            "A promotion was lost on the way to 3.6 (etcd#19557): go back to the 3.5 binary, bring all to 3.5.32 or"
            " later, then upgrade."
        ),
    ),
    (
        "too many learner members",
        (
            "One learner at a time: promote the one that waits (`member.promote NAME`) or take it back"
            " (`member.undo`); `status` names it."
        ),
    ),
    (
        "can only promote a learner member which is in sync with leader",
        "The learner has not caught up, or does not run: see its LAG in `status`, and its log, and try again.",
    ),
    ("can only promote a learner member", "It is a voter already: there is nothing to be done."),
    (
        "member not found",
        "It is no member (any more): see `ctl -- member list`. After a retry, that is as it should be.",
    ),
    ("Peer URLs already exists", "It has been added already: see `ctl -- member list`, and start it."),
    ("rpc not supported for learner", "This member is a learner and does not answer this: ask a voter (see `status`)."),
    ("not leader", "Leadership has moved meanwhile: `status` shows who leads; try again."),
    ("bad leader transferee", "Only a voter that runs can lead: `status` shows which do."),
    (
        "leader transfer took too long",
        "The target may be slow or cut off: see `status`, then try again, or choose another with --to.",
    ),
    (
        "no leader",
        "There is no quorum, or an election goes on: look at `status`; `up-env` starts what is stopped.",
    ),
    (
        "database space exceeded",
        "The space quota is used up: `cluster.heal-nospace` compacts, defragments, and disarms NOSPACE.",
    ),
    (
        "corrupt cluster",
        (
            "A member's data differs from the others', and the CORRUPT alarm protects what is left: do not disarm it."
            " `status` names the member; save a snapshot of each, and replace it."
        ),
    ),
    (
        "required revision has been compacted",
        (
            "That history is gone: read the keys anew and go on from the revision that the answer tells. After a"
            " restore this is expected."
        ),
    ),
    (
        "cluster ID mismatch",
        (
            "Members of another cluster answer at these peer URLs: an old member still runs there, or this one was"
            " created anew. `cluster.list` shows what runs; end the one that does not belong."
        ),
    ),
    (
        "has already been bootstrapped",
        "Its data directory was emptied, so it cannot come back under its old ID: remove the member, then add it anew.",
    ),
    (
        "is out of range [lastIndex(",
        "Its data directory was emptied or is an old copy: remove the member, then add it anew with an empty one.",
    ),
    (
        "the member has been permanently removed from the cluster",
        "It was removed, and its data directory can never join again: move that away, then add a new member.",
    ),
    (
        "snapshot missing hash but --skip-hash-check=false",
        (
            "The file is cut off, or a copy of a member's database and not a snapshot: a snapshot's size is 32 more"
            " than a multiple of 512. Only such a copy may skip the check."
        ),
    ),
    ("user name is empty", "Authentication is on: give a user, as in `ctl -- --user NAME get k`."),
    ("invalid auth token", "The token has expired, or the member was restarted: log in again and try once more."),
    ("revision of auth store is old", "Users or roles have changed since: log in again and try once more."),
    (
        "request timed out",
        "There was no quorum in time, or a disk is slow: look at `status --gate`. A write may still be applied.",
    ),
    ("Deadline Exceeded", _NO_ANSWER),
    ("context deadline exceeded", _NO_ANSWER),
)


def remedy_for(said: str) -> str:
    """Give what to do about a text of etcd's, "" where nothing is known.

    >>> remedy_for("etcdserver: Peer URLs already exists")
    'It has been added already: see `ctl -- member list`, and start it.'
    """
    return next((remedy for words, remedy in HINTS if words in said), "")
