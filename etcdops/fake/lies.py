"""The ways in which a fake cluster can be wrong, so that each check can be shown to notice."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Lies"]


class Lies(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a fake cluster lies about: nothing, unless it is told to. A field may be changed while members run.

    >>> Lies(lose_every=10, after_fault=True).lose_every
    10
    """

    #: None of the others is told before a member has been killed, stopped or paused: a drill's steady state is met.
    after_fault: bool = False

    #: Every n-th Put is acknowledged, with the revision that it would have had, and applied by no member. 0: none.
    lose_every: int = 0
    #: Every Put of a key that ends so is lost in the same way.
    lose_key: str = ""
    #: The first member that runs and does not lead says in its status that it leads too, in the same term.
    two_leaders: bool = False
    #: A member that was killed and is started again: "dead" logs why and is not there; "mute" runs, and serves nothing.
    never_back: Literal["", "dead", "mute"] = ""
    #: A member that comes back after a kill, a stop or a pause applies nothing any more. "waits": it is honest about
    #: it, and linearizable calls through it time out. "serves": it answers them as if nothing had happened since.
    never_catches_up: Literal["", "waits", "serves"] = ""
    #: Name of a member that answers HashKV with another hash, although its data is right.
    wrong_hash: str = ""
    #: Name of a member that stores another value than the one put, from now on.
    diverges: str = ""
    #: Every n-th linearizable Range is answered as of one revision earlier, that revision included. 0: none.
    stale_every: int = 0
    #: Every n-th event of a watch that is not over all keys is not delivered. 0: none.
    drop_every: int = 0
    #: A member that is started again after a kill logs a panic, as etcd does when its data is older than what it has
    #: acknowledged, and serves all the same.
    panics: bool = False
    #: The leader goes on without a quorum: it acknowledges writes and answers linearizable reads alone.
    ignores_quorum: bool = False
    #: A learner stays as it was when it joined for as long as this is set, so that it cannot be promoted.
    learner_lags: bool = False
