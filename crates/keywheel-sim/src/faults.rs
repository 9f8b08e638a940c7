//! What can go wrong (`hazards.md` B5), and at which steps.
//!
//! Every pair of a step and a fault is either reached by the simulator or listed in [`impossible`] with its reason. Both
//! lists are matches without a wildcard over the first column, so a new step or fault does not compile until it is placed.

use keywheel_core::event::Step;

/// Steps by kind, without their arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "named and documented in `keywheel_core::event::Step`")]
pub enum StepKind {
    Preflight,
    Capture,
    Mint,
    FindMint,
    RevokeStray,
    Verify,
    Write,
    Roll,
    Evidence,
    Probe,
    Visit,
    Suspend,
    Resume,
    Revoke,
    VerifyDead,
    Sweep,
    Extend,
    CleanUp,
    KeepAlive,
}

impl StepKind {
    /// Every kind of step.
    pub const ALL: [Self; 19] = [
        Self::Preflight,
        Self::Capture,
        Self::Mint,
        Self::FindMint,
        Self::RevokeStray,
        Self::Verify,
        Self::Write,
        Self::Roll,
        Self::Evidence,
        Self::Probe,
        Self::Visit,
        Self::Suspend,
        Self::Resume,
        Self::Revoke,
        Self::VerifyDead,
        Self::Sweep,
        Self::Extend,
        Self::CleanUp,
        Self::KeepAlive,
    ];

    /// Returns the kind of a step.
    pub fn of(step: Step) -> Self {
        match step {
            Step::Preflight => Self::Preflight,
            Step::Capture => Self::Capture,
            Step::Mint { .. } => Self::Mint,
            Step::FindMint { .. } => Self::FindMint,
            Step::RevokeStray { .. } => Self::RevokeStray,
            Step::Verify(_) => Self::Verify,
            Step::Write { .. } => Self::Write,
            Step::Roll { .. } => Self::Roll,
            Step::Evidence { .. } => Self::Evidence,
            Step::Probe { .. } => Self::Probe,
            Step::Visit => Self::Visit,
            Step::Suspend(_) => Self::Suspend,
            Step::Resume(_) => Self::Resume,
            Step::Revoke(_) => Self::Revoke,
            Step::VerifyDead(_) => Self::VerifyDead,
            Step::Sweep => Self::Sweep,
            Step::Extend => Self::Extend,
            Step::CleanUp { .. } => Self::CleanUp,
            Step::KeepAlive(_) => Self::KeepAlive,
        }
    }

    /// Returns whether the step's call changes something outside the journal.
    pub fn mutates(self) -> bool {
        match self {
            Self::Mint | Self::RevokeStray | Self::Write | Self::Roll => true,
            Self::Suspend | Self::Resume | Self::Revoke => true,
            Self::Extend | Self::CleanUp | Self::KeepAlive => true,
            Self::Preflight | Self::Capture | Self::FindMint | Self::Verify | Self::Evidence => {
                false
            }
            Self::Probe | Self::Visit | Self::VerifyDead | Self::Sweep => false,
        }
    }
}

macro_rules! faults {
    ($($(#[doc = $doc:literal])* $name:ident),+ $(,)?) => {
        /// One thing that goes wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault { $($(#[doc = $doc])* $name),+ }

        impl Fault {
            /// Every fault.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
        }
    };
}

faults! {
    /// The process dies after the intent is durable and before the call is sent.
    CrashBefore,
    /// The process dies with the call under way; the call lands.
    CrashInFlight,
    /// The process dies with the call under way; the call lands as late as it can.
    CrashLate,
    /// The process dies with the answer in hand and nothing of it durable.
    CrashAfter,
    /// The process dies with the call under way, and its successor dies while it recovers.
    CrashInRecovery,
    /// The process stands still for a while with the call under way, and goes on.
    Pause,
    /// The process stands still for longer than its claim; another takes over, and the first wakes up.
    PauseTakenOver,
    /// The process is asked to stop, and another goes on later.
    Stop,
    /// A commit fails, and nothing of it is written.
    CommitRefused,
    /// A commit is written, and the answer is an error.
    CommitUnacknowledged,
    /// A commit is lost by a power cut.
    TailLost,
    /// The process dies, and the journal that the next one finds lacks commits that were acknowledged: a backup that was put back,
    /// or a replica that took over. That takes longer than any call that is under way.
    JournalBehind,
    /// A store forgets its last write, which was acknowledged, as a replica does that takes over without it.
    StoreBehind,
    /// A commit takes a minute, longer than the call that it announces may take.
    CommitSlow,
    /// Another process tries to take the rotation up while its owner lives.
    SecondEngine,
    /// The same process takes the rotation up a second time.
    SecondTask,
    /// The request never arrives, and no answer comes.
    RequestLost,
    /// The call lands, and no answer comes.
    AnswerLost,
    /// The call lands, and the answer says nothing.
    AnswerUnclear,
    /// No answer comes, and the call lands as late as it can.
    LateLanding,
    /// The call lands twice: at once, and as late as it can.
    Duplicate,
    /// Too many calls: a no, with a time to wait.
    Throttled,
    /// The other side is down, and it is certain that nothing was done.
    Unavailable,
    /// The caller may not do this; an operator sees to it.
    Forbidden,
    /// The answer comes just before the deadline.
    Slow,
    /// The issuer does not take the value.
    ValueRejected,
    /// The issuer's cap is reached.
    QuotaFull,
    /// A store shows what it held before.
    StaleRead,
    /// Somebody edits a slot by hand.
    RivalEdit,
    /// Somebody puts the version that a slot held before back.
    RivalRevert,
    /// A roll says that it is complete and left replicas out.
    RollSkipsSome,
    /// No replica is listed.
    ReplicasHidden,
    /// Replicas restart by themselves.
    ReplicaRestarts,
    /// A replica is added.
    ScaleUp,
    /// The wall clock leaps ahead.
    WallForward,
    /// The wall clock is set back.
    WallBack,
    /// The machine is suspended and wakes up.
    Suspended,
    /// The machine reboots: every process dies, and the boot clock begins anew.
    Reboot,
    /// Probes are red for a while.
    ProbeRed,
    /// An operator undoes the rotation.
    Undo,
    /// An emergency takes the rotation over.
    Emergency,
    /// An operator ends the rollback window early.
    WindowClosed,
}

/// What a fault is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hits {
    /// A call to a driver.
    Call,
    /// A commit of the journal.
    Commit,
    /// The process, the world or the people, while a call is under way.
    Around,
}

impl Fault {
    /// Returns what the fault is done to.
    pub fn hits(self) -> Hits {
        match self {
            Self::CommitRefused
            | Self::CommitUnacknowledged
            | Self::TailLost
            | Self::CommitSlow => Hits::Commit,
            Self::CrashBefore
            | Self::CrashInFlight
            | Self::CrashLate
            | Self::CrashAfter
            | Self::CrashInRecovery => Hits::Call,
            Self::Pause | Self::PauseTakenOver => Hits::Call,
            Self::RequestLost
            | Self::AnswerLost
            | Self::AnswerUnclear
            | Self::LateLanding
            | Self::Duplicate => Hits::Call,
            Self::Throttled | Self::Unavailable | Self::Forbidden | Self::Slow => Hits::Call,
            Self::ValueRejected
            | Self::QuotaFull
            | Self::StaleRead
            | Self::RollSkipsSome
            | Self::ReplicasHidden => Hits::Call,
            Self::ProbeRed => Hits::Call,
            Self::Stop | Self::SecondEngine | Self::SecondTask => Hits::Around,
            Self::RivalEdit | Self::RivalRevert | Self::ReplicaRestarts | Self::ScaleUp => {
                Hits::Around
            }
            Self::WallForward | Self::WallBack | Self::Suspended | Self::Reboot => Hits::Around,
            Self::Undo | Self::Emergency | Self::WindowClosed => Hits::Around,
            Self::JournalBehind | Self::StoreBehind => Hits::Around,
        }
    }
}

/// Returns why a fault cannot happen at a step, where it cannot.
pub fn impossible(step: StepKind, fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::CrashLate | Fault::LateLanding | Fault::Duplicate if !step.mutates() => {
            Some("the step's calls only read; there is nothing that could land")
        }
        Fault::ValueRejected | Fault::QuotaFull if step != StepKind::Mint => {
            Some("only a mint brings a value or counts against a cap")
        }
        Fault::StaleRead
            if !matches!(
                step,
                StepKind::Capture
                    | StepKind::Write
                    | StepKind::Visit
                    | StepKind::Suspend
                    | StepKind::Revoke
            ) =>
        {
            Some("the step reads no store")
        }
        Fault::RollSkipsSome if step != StepKind::Roll => Some("the step rolls nothing"),
        Fault::ReplicasHidden if !matches!(step, StepKind::Evidence | StepKind::Visit) => {
            Some("the step looks at no replica")
        }
        Fault::ProbeRed if !matches!(step, StepKind::Probe | StepKind::Visit) => {
            Some("the step asks no probe")
        }
        _ => None,
    }
}

/// Returns every pair that can happen.
pub fn pairs() -> impl Iterator<Item = (StepKind, Fault)> {
    let all = StepKind::ALL
        .into_iter()
        .flat_map(|step| Fault::ALL.iter().map(move |fault| (step, *fault)));
    all.filter(|(step, fault)| impossible(*step, *fault).is_none())
}

/// Which pairs were reached.
#[derive(Clone)]
pub struct Hit(Vec<bool>);

impl Default for Hit {
    fn default() -> Self {
        Self(vec![false; StepKind::ALL.len() * Fault::ALL.len()])
    }
}

impl Hit {
    /// Notes that a pair was reached.
    pub fn note(&mut self, step: StepKind, fault: Fault) {
        self.0[step as usize * Fault::ALL.len() + fault as usize] = true;
    }

    /// Returns whether a pair was reached.
    pub fn has(&self, step: StepKind, fault: Fault) -> bool {
        self.0[step as usize * Fault::ALL.len() + fault as usize]
    }

    /// Adds what another one reached.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// Returns the pairs that can happen and were not reached.
    pub fn missing(&self) -> Vec<(StepKind, Fault)> {
        pairs().filter(|(step, fault)| !self.has(*step, *fault)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_in_the_order_of_their_numbers() {
        assert!(StepKind::ALL.iter().enumerate().all(|(index, step)| *step as usize == index));
        assert!(Fault::ALL.iter().enumerate().all(|(index, fault)| *fault as usize == index));
    }
}
