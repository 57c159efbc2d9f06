"""How long Raft says that writes stop when a leader goes: arithmetic on the cluster's own timing and size.

A follower that hears nothing campaigns after a time that it draws anew in each term, uniformly from T to 2T - 1 ticks
of one heartbeat interval each, T = election timeout // heartbeat interval (raft's `randomizedElectionTimeout`; etcd
turns `--election-timeout` into ticks in that way). The first to draw wins.
"""

from __future__ import annotations

import msgspec

from etcdops.errors import SpecError
from etcdops.spec import Timing

__all__ = ["Prediction", "explain_outlier", "predict", "predict_distribution", "predicted_mean_ms"]

_BY_TIMEOUT = ("kill", "freeze", "isolate", "unplug")
_BY_HANDOVER = ("stop", "move-leader")


class Prediction(msgspec.Struct, frozen=True):
    """The outage that Raft predicts for one run, in milliseconds, as a distribution.

    It is that of the earliest of `voters` - 1 draws: from `low_ms` to `high_ms`, with `mean_ms`, `median_ms` and
    `p90_ms` (the smallest outage that half, and nine in ten, do not exceed). Those three are None where leadership is
    handed over: Raft has no distribution for that. `phase_ms` is by how much less it may be. `split_risk`, from 0 to 1,
    is the chance that the two earliest draws are equal: then both may campaign, and if no one wins, all draw again.
    `not_in_it` says in words what comes on top.
    """

    how: str
    voters: int
    low_ms: float
    high_ms: float
    mean_ms: float | None
    median_ms: float | None
    p90_ms: float | None
    phase_ms: float
    split_risk: float
    not_in_it: tuple[str, ...]


def predict(timing: Timing, voters: int, how: str) -> tuple[float, float]:
    """Give the shortest and the longest outage that Raft predicts when the leader goes, in milliseconds.

    kill, freeze, isolate, unplug: from T to 2T - 1 ticks: 1,000 to 1,900 ms at etcd's defaults, whatever the number of
    followers. Measured on 3 members of etcd 3.5.1: 1.00 to 1.86 s over 15 kills. See Prediction for what is not in it.

    stop, move-leader: on SIGTERM the leader hands leadership over before it exits (etcd's
    TryTransferLeadershipOnShutdown), as it does when it is told to, and what is left is about one heartbeat: 0 to 100
    ms at the defaults. Measured: 0.04 to 0.08 s over 9 stops.

    Raises SpecError for another way than these, and when the voters that are left are no quorum: then the outage does
    not end.
    """
    if how not in _BY_TIMEOUT + _BY_HANDOVER:
        known = ", ".join(_BY_TIMEOUT + _BY_HANDOVER)
        raise SpecError(f"no prediction for a leader taken away by {how!r}: {known} have one")
    if how != "move-leader":
        _check_quorum_left(voters)
    elif voters < 2:
        raise SpecError("no prediction for moving the leader of a single member", remedy="Use a cluster of 3 members.")
    if how in _BY_HANDOVER:
        return 0.0, float(timing.heartbeat_ms)
    ticks = timing.election_ms // timing.heartbeat_ms
    return float(ticks * timing.heartbeat_ms), float((2 * ticks - 1) * timing.heartbeat_ms)


def predict_distribution(timing: Timing, voters: int, how: str) -> Prediction:
    """Give Raft's prediction for a leader taken away by `how` as a distribution; raises SpecError as `predict` does."""
    low_ms, high_ms = predict(timing, voters, how)
    tick_ms = timing.heartbeat_ms
    if how in _BY_HANDOVER:
        return Prediction(
            how,
            voters,
            low_ms,
            high_ms,
            mean_ms=None,
            median_ms=None,
            p90_ms=None,
            phase_ms=0.0,
            split_risk=0.0,
            not_in_it=(
                "an election: should the member that leadership is handed to not win at once, an election timeout",
                "the time that a request takes which the old leader turned away, and which the client sends again",
            ),
        )
    ticks, followers = timing.election_ms // tick_ms, voters - 1
    # Only one of all the draws is the earliest, and all others are later: what is left to 1 is a tie.
    alone = sum(followers * (ticks - j - 1) ** (followers - 1) for j in range(ticks)) / ticks**followers
    split_risk = 1 - alone
    return Prediction(
        how,
        voters,
        low_ms,
        high_ms,
        mean_ms=predicted_mean_ms(timing, voters),
        median_ms=_quantile(ticks, followers, 1, 2) * tick_ms,
        p90_ms=_quantile(ticks, followers, 9, 10) * tick_ms,
        phase_ms=float(tick_ms),
        split_risk=split_risk,
        not_in_it=(
            f"up to {tick_ms} ms less: followers count whole ticks, and the last heartbeat was some time ago",
            "a few round trips for votes and the first commit",
            f"a further {low_ms:,.0f} to {high_ms:,.0f} ms after a split vote (risk {100 * split_risk:.0f} %)",
            "the time that a client needs to connect again, or to turn to another member",
        ),
    )


def predicted_mean_ms(timing: Timing, voters: int) -> float:
    """Give the mean outage that Raft predicts after the leader was killed or frozen, in milliseconds.

    It is the mean of the earliest of voters - 1 draws (see `predict`): 1,285 ms for 3 voters and 1,153 ms for 5 at the
    defaults; measured mean 1,330 ms for 3. Raises SpecError as `predict` does.
    """
    _check_quorum_left(voters)
    ticks = timing.election_ms // timing.heartbeat_ms
    # The mean of a whole number that is never negative is the sum of the chances that it reaches 1, 2, 3, ...
    beyond = sum(((ticks - j) / ticks) ** (voters - 1) for j in range(1, ticks))
    return (ticks + beyond) * timing.heartbeat_ms


def explain_outlier(measured_ms: float, prediction: Prediction, *, resolution_ms: float, noise_ms: float | None) -> str:
    """Give why an outage is not what Raft predicts, as far as one can tell; "" when it is as predicted.

    As predicted is what lies between the shortest (less the phase) and the longest, or no further from them than
    resolution and noise together: such a difference means nothing.
    """
    slack_ms = resolution_ms + (noise_ms or 0.0)
    shortest_ms, longest_ms = prediction.low_ms - prediction.phase_ms, prediction.high_ms
    if shortest_ms - slack_ms <= measured_ms <= longest_ms + slack_ms:
        return ""
    tick_ms = prediction.phase_ms or prediction.high_ms
    # Heartbeats come that often: where answers are held up for longer without a fault, so are they.
    noisy = noise_ms is not None and noise_ms > tick_ms
    machine = f"a slow machine, for without a fault answers were held up for {noise_ms or 0.0:,.0f} ms"
    if measured_ms < shortest_ms:
        off = f"{prediction.low_ms - measured_ms:,.0f} ms shorter than predicted"
        return f"{off}: likely it did not lead any more when it went, or an election had begun"
    off = f"{measured_ms - longest_ms:,.0f} ms longer than predicted"
    if noisy:
        return f"{off}: likely {machine}"
    if prediction.how in _BY_HANDOVER:
        return f"{off}: likely leadership was not handed over, and an election timeout was waited for"
    if measured_ms > 2 * longest_ms + slack_ms:
        return f"{off}: more than one split vote, or something else than the election held writes up"
    if measured_ms < 2 * prediction.low_ms:
        return f"{off}: too little to tell a split vote from something else that held writes up"
    return f"{off}: likely a split vote, after which all waited for a further timeout"


def _quantile(ticks: int, followers: int, part: int, of: int) -> int:
    """Give the smallest number of ticks that the earliest draw does not exceed in `part` of `of` cases."""
    draws = ticks**followers
    # Whole numbers, so that no rounding moves a quantile that falls on a tick.
    return next(ticks + j for j in range(ticks) if of * (draws - (ticks - j - 1) ** followers) >= part * draws)


def _check_quorum_left(voters: int) -> None:
    if voters < 3:
        raise SpecError(
            f"no prediction for a leader taken from {voters} voter{'s' * (voters != 1)}: what is left is no quorum",
            remedy="Use a cluster of 3 or more members.",
        )
