//! Batches: independent rotations that share rolls. Pure: who of a group may do what next.
//!
//! Two rules join them. A member begins a move only when no other member has more moves left before its promotion, and every
//! member's version is verified; so short walks wait for long ones and end in the same roll. A roll waits until every member
//! at the same distance has written; then all roll at once. A group of one has no rule.

use smallvec::SmallVec;

use crate::event::{Event, Step};
use crate::plan::Bound;
use crate::rotation::{Next, Rotation, Why};
use crate::strategy::Side;
use crate::time::Timestamp;

/// What a group does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// One member journals this.
    Record(usize, Event),
    /// One step is taken; more at once only for a roll that members share, or by an emergency, which is alone in its group.
    Do(SmallVec<[(usize, Step); 2]>),
    /// Nobody does anything before then.
    Wait {
        /// When to ask again.
        until: Timestamp,
        /// What for.
        why: Why,
    },
    /// Every member has ended or waits for an operator.
    Rest,
}

/// Returns what a group does at `now`.
pub fn turn(members: &[&Rotation], now: Timestamp) -> Turn {
    let owed: SmallVec<[Next; 2]> = members.iter().map(|member| member.next(now)).collect();
    // Those on their way to promotion go first: a retirement of one member must not keep the others half delivered.
    let (mut moving, retiring): (SmallVec<[usize; 2]>, SmallVec<[usize; 2]>) =
        (0..members.len()).partition(|index| moves_left(members[*index]).is_some());
    // A person is asked before anything else is made: the others would only wait for the answer.
    moving.sort_by_key(|index| members[*index].plan().issuer.facts.by_hand.is_none());
    // Nobody's move is waited for while a version is suspended for a look.
    let (watched, retiring): (SmallVec<[usize; 2]>, SmallVec<[usize; 2]>) =
        retiring.into_iter().partition(|index| members[*index].is_watched());
    for index in watched.into_iter().chain(moving).chain(retiring) {
        let next = &owed[index];
        match next {
            Next::Record(event @ Event::MoveBegun { .. })
                if held_at_barrier(members, &owed, index) =>
            {
                debug_assert!(members.len() > 1, "{event:?} held in a group of one");
            }
            Next::Record(event) => return Turn::Record(index, event.clone()),
            Next::Do(step) if members.len() == 1 => {
                let together = members[index].together(*step, now);
                return Turn::Do(together.into_iter().map(|step| (index, step)).collect());
            }
            Next::Do(Step::Roll { .. }) if others_write_first(members, &owed, index) => {}
            Next::Do(Step::Roll { .. }) => {
                if let Some(rolls) = shared_roll(members, &owed, index) {
                    return Turn::Do(rolls);
                }
            }
            Next::Do(step) => return Turn::Do(SmallVec::from_iter([(index, *step)])),
            Next::Wait { .. } | Next::Await(_) | Next::Operator(_) | Next::Rest(_) => {}
        }
    }
    let earliest = owed.iter().filter_map(|next| match next {
        Next::Wait { until, why } => Some((*until, *why)),
        _ => None,
    });
    earliest
        .min_by_key(|(until, _)| *until)
        .map_or(Turn::Rest, |(until, why)| Turn::Wait { until, why })
}

/// How many moves a member still has before its promotion; none once it is promoted, turned round, ended or parked.
fn moves_left(member: &Rotation) -> Option<u8> {
    let moving = member.toward() == Side::Pending
        && !member.was_ever_promoted()
        && member.outcome().is_none()
        && member.parked().is_none();
    moving.then(|| {
        member.line().promotes(Side::Pending, member.walk().position()) - member.walk().position()
    })
}

fn held_at_barrier(members: &[&Rotation], owed: &[Next], index: usize) -> bool {
    let Some(mine) = moves_left(members[index]) else { return false };
    members.iter().zip(owed).enumerate().any(|(other, (member, next))| {
        let ready = member.walk().moving_to().is_some()
            || matches!(next, Next::Record(Event::MoveBegun { .. }));
        other != index && moves_left(member).is_some_and(|left| left > mine || (!ready && left > 0))
    })
}

/// On the way back every member's writes come before anybody's roll: a replica that is made while one value still stands in a
/// store may come up with that one as little as before.
fn others_write_first(members: &[&Rotation], owed: &[Next], index: usize) -> bool {
    let writes = |next: &Next| {
        matches!(next, Next::Record(Event::MoveBegun { .. }) | Next::Do(Step::Write { .. }))
    };
    returns(members[index])
        && !crate::planted!("rolled_back_before_all_is_written")
        && members.iter().zip(owed).any(|(member, next)| returns(member) && writes(next))
}

/// Whether a member turned round before anybody was told to use its version.
fn returns(member: &Rotation) -> bool {
    member.toward() == Side::Previous
        && !member.was_ever_promoted()
        && member.outcome().is_none()
        && member.parked().is_none()
}

/// The roll of one member with that of all others at the same distance, once each of them has come to it.
fn shared_roll(
    members: &[&Rotation],
    owed: &[Next],
    index: usize,
) -> Option<SmallVec<[(usize, Step); 2]>> {
    let Next::Do(step @ Step::Roll { workload, .. }) = &owed[index] else { return None };
    let alone = || Some(SmallVec::from_iter([(index, *step)]));
    let Some(mine) = moves_left(members[index]) else { return alone() };
    let bound = &members[index].plan().workloads[usize::from(*workload)].bound;
    let mut rolls = SmallVec::new();
    for (other, (member, next)) in members.iter().zip(owed).enumerate() {
        match next {
            Next::Do(step @ Step::Roll { workload, .. })
                if moves_left(member) == Some(mine)
                    && member.plan().workloads[usize::from(*workload)].bound == *bound =>
            {
                rolls.push((other, *step));
            }
            _ if other == index || moves_left(member) != Some(mine) => {}
            Next::Do(Step::Roll { .. }) if !comes_to(member, next, bound) => {}
            next if !has_rolled(next) || comes_to(member, next, bound) => return None,
            _ => {}
        }
    }
    Some(rolls)
}

/// Whether a member is about to roll, or to prove, another workload and comes to this one after it. Members come to workloads
/// in one order, so that no two of them wait for each other.
fn comes_to(member: &Rotation, next: &Next, bound: &Bound) -> bool {
    let Next::Do(Step::Roll { workload, .. } | Step::Evidence { workload, .. }) = next else {
        return false;
    };
    let later = member.plan().workloads.iter().skip(usize::from(*workload) + 1);
    later.into_iter().any(|workload| workload.bound == *bound)
}

/// Whether a member at the same distance is past its rolls, so that nobody needs to wait for it.
fn has_rolled(next: &Next) -> bool {
    matches!(
        next,
        Next::Do(Step::Evidence { .. } | Step::Probe { .. }) | Next::Record(Event::Arrived { .. })
    ) || matches!(
        next,
        Next::Wait { why: Why::Settle | Why::Retry(Step::Roll { .. } | Step::Evidence { .. }), .. }
    )
}
