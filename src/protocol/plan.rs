//! How a commit must run, given who has written.
//!
//! One phase is enough exactly when there is a single place whose durable change decides
//! everything: one participant that has written and nothing local. Everything else that wrote needs
//! two phases.
//!
//! A participant has written if its transaction has an xid there, which a query may have assigned.
//! It also counts as having written if anything but queries ran there: that may have changed a
//! third server, through a foreign table of the participant's, which assigns no xid.

/// `pg_fdw_xacts.two_phase_commit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Two phases whenever atomicity needs them.
    Auto,
    /// Two phases for every transaction that wrote remotely.
    Always,
    /// Never: each participant commits on its own.
    Off,
}

/// What a statement may do on a participant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It is a query that locks no rows.
    Reads,
    /// It is anything else, whatever it changes.
    Modifies,
}

/// What is known of the xid of a participant's transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Xid {
    /// It has none: it has changed nothing on that server itself.
    None,
    /// It has one.
    Assigned,
    /// The question has not been answered since the last statement.
    Unknown,
}

/// What is known of one participant at the end of the transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// The most that any of its statements might do.
    pub access: Access,
    /// Whether its transaction has an xid there.
    pub xid: Xid,
    /// The server option `two_phase_commit` is on.
    pub can_prepare: bool,
}

impl Work {
    /// Whether the participant has written, or may have.
    pub fn wrote(self) -> bool {
        self.access == Access::Modifies || self.xid != Xid::None
    }
}

/// What is known of the local transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Local {
    /// It has an xid here.
    pub wrote: bool,
    /// Its isolation level is SERIALIZABLE: PostgreSQL's own check, which comes later, can still
    /// fail.
    pub serializable: bool,
    /// It ends with the application's PREPARE TRANSACTION.
    pub explicit: bool,
}

/// What one participant does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Commit before the decision: it has written nothing.
    CommitReader,
    /// Prepare, then commit prepared once decided.
    Prepare,
    /// Commit in one phase, after all others have prepared.
    CommitLast,
}

/// Why a transaction with writers that cannot prepare cannot commit atomically.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There is more than one.
    Several,
    /// The application asked for PREPARE TRANSACTION.
    Explicit,
    /// Under SERIALIZABLE the local check would come after its commit.
    Serializable,
}

/// Decides what each participant does, in their order.
///
/// # Errors
/// The transaction has to be refused.
pub fn plan(mode: Mode, local: Local, participants: &[Work]) -> Result<Vec<Step>, Refusal> {
    let writers = participants.iter().filter(|p| p.wrote()).count();
    let sole_writer = writers == 1 && !local.wrote && !local.serializable;
    // PREPARE TRANSACTION promises that COMMIT PREPARED decides, so it prepares whatever `mode`
    // says.
    let two_phases = local.explicit
        || match mode {
            Mode::Off => false,
            Mode::Always => writers > 0,
            Mode::Auto => writers > 0 && !sole_writer,
        };
    let mut last = 0;
    let mut steps = Vec::with_capacity(participants.len());
    for p in participants {
        steps.push(match (p.wrote(), two_phases, p.can_prepare) {
            // Under SERIALIZABLE a reader's commit can still fail, because what it has read cannot
            // be serialized.
            (false, true, true) if local.serializable => Step::Prepare,
            (false, ..) => Step::CommitReader,
            (true, false, _) => Step::CommitLast,
            (true, true, true) => Step::Prepare,
            (true, true, false) => {
                last += 1;
                Step::CommitLast
            }
        });
    }
    match (last, local.explicit, local.serializable) {
        (0, ..) => Ok(steps),
        (_, true, _) => Err(Refusal::Explicit),
        (_, _, true) => Err(Refusal::Serializable),
        (1, ..) => Ok(steps),
        _ => Err(Refusal::Several),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READER: Work = Work { access: Access::Reads, xid: Xid::None, can_prepare: true };
    const WRITER: Work = Work { access: Access::Modifies, xid: Xid::Assigned, ..READER };
    const UNABLE: Work = Work { can_prepare: false, ..WRITER };
    const NOTHING_LOCAL: Local = Local { wrote: false, serializable: false, explicit: false };

    #[test]
    fn one_writer_and_nothing_local_is_one_phase() {
        assert_eq!(
            plan(Mode::Auto, NOTHING_LOCAL, &[READER, WRITER]),
            Ok(vec![Step::CommitReader, Step::CommitLast])
        );
        for local in [
            Local { wrote: true, ..NOTHING_LOCAL },
            Local { serializable: true, ..NOTHING_LOCAL },
            Local { explicit: true, ..NOTHING_LOCAL },
        ] {
            assert_eq!(plan(Mode::Auto, local, &[WRITER]), Ok(vec![Step::Prepare]));
        }
        assert_eq!(plan(Mode::Always, NOTHING_LOCAL, &[WRITER]), Ok(vec![Step::Prepare]));
    }

    #[test]
    fn only_who_ran_nothing_but_queries_and_has_no_xid_has_not_written() {
        for access in [Access::Reads, Access::Modifies] {
            for xid in [Xid::None, Xid::Assigned, Xid::Unknown] {
                let work = Work { access, xid, can_prepare: true };
                assert_eq!(work.wrote(), (access, xid) != (Access::Reads, Xid::None));
                let step = if work.wrote() { Step::Prepare } else { Step::CommitReader };
                assert_eq!(plan(Mode::Auto, NOTHING_LOCAL, &[WRITER, work]), {
                    let first = if work.wrote() { Step::Prepare } else { Step::CommitLast };
                    Ok(vec![first, step])
                });
            }
        }
    }

    #[test]
    fn two_writers_prepare() {
        assert_eq!(
            plan(Mode::Auto, NOTHING_LOCAL, &[WRITER, READER, WRITER]),
            Ok(vec![Step::Prepare, Step::CommitReader, Step::Prepare])
        );
    }

    #[test]
    fn a_server_without_two_phase_commit_comes_last_and_alone() {
        assert_eq!(
            plan(Mode::Auto, NOTHING_LOCAL, &[UNABLE, WRITER]),
            Ok(vec![Step::CommitLast, Step::Prepare])
        );
        assert_eq!(plan(Mode::Auto, NOTHING_LOCAL, &[UNABLE, UNABLE]), Err(Refusal::Several));
        let explicit = Local { explicit: true, ..NOTHING_LOCAL };
        assert_eq!(plan(Mode::Auto, explicit, &[UNABLE]), Err(Refusal::Explicit));
    }

    /// Every case up to three participants: whatever is committed before the decision may not be
    /// able to break atomicity.
    #[test]
    fn nothing_that_wrote_commits_beside_another_writer_that_cannot_follow() {
        let kinds = [READER, WRITER, UNABLE, Work { can_prepare: false, ..READER }];
        for bits in 0..8 {
            let local = Local {
                wrote: bits & 1 != 0,
                serializable: bits & 2 != 0,
                explicit: bits & 4 != 0,
            };
            for mode in [Mode::Auto, Mode::Always] {
                for a in kinds {
                    for b in kinds {
                        for c in kinds {
                            let all = [a, b, c];
                            let Ok(steps) = plan(mode, local, &all) else { continue };
                            let one_phase =
                                steps.iter().filter(|s| **s == Step::CommitLast).count();
                            assert!(one_phase <= 1);
                            if one_phase == 1 {
                                assert!(!local.explicit && !local.serializable);
                            }
                            for (work, step) in all.iter().zip(&steps) {
                                assert!(!work.wrote() || *step != Step::CommitReader);
                                assert!(work.can_prepare || *step != Step::Prepare);
                            }
                        }
                    }
                }
            }
        }
    }
}
