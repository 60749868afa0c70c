//! Labels, by which a client can ask later what became of a transaction.

use std::fmt;

/// The longest label in bytes.
pub const MAX_LEN: usize = 200;

/// Whether a client may use a label: it is not empty, and not too long.
pub fn is_valid(label: &[u8]) -> bool {
    !label.is_empty() && label.len() <= MAX_LEN
}

/// What the table of labels says of a label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// Its transaction has not ended.
    Running,
    /// Its transaction is prepared here under the application's 'gxid'.
    Prepared,
    /// Its transaction committed.
    Committed,
    /// A client asked for it before it was used: it cannot be used any more.
    Taken,
    /// It was used or taken, longer ago than labels are kept.
    Expired,
    /// Nobody has used or taken it.
    Unseen,
}

/// What a client is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Committed, and all participants have confirmed.
    Committed,
    /// Committed, but not all participants have confirmed.
    Committing,
    /// Prepared under the application's 'gxid'.
    Prepared,
    /// Its transaction has not ended.
    InProgress,
    /// Its transaction has not committed, and cannot any more.
    Aborted,
    /// This server cannot tell.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Committed => "committed",
            Outcome::Committing => "committing",
            Outcome::Prepared => "prepared",
            Outcome::InProgress => "in progress",
            Outcome::Aborted => "aborted",
            Outcome::Unknown => "unknown",
        })
    }
}

/// The answer about a label; `None`: the label must be taken first, so that no transaction can use
/// it any more and the answer `aborted` stays true. `standby`: asked on a server in recovery, which
/// only knows what was replayed. `unconfirmed`: not all participants have confirmed. `replicated`:
/// a fail-over cannot take back what is known.
pub fn outcome(
    known: Known,
    standby: bool,
    unconfirmed: bool,
    replicated: bool,
) -> Option<Outcome> {
    Some(match (known, standby) {
        (Known::Committed | Known::Taken, false) if !replicated => Outcome::InProgress,
        (Known::Committed, _) if unconfirmed => Outcome::Committing,
        (Known::Committed, _) => Outcome::Committed,
        (Known::Taken, _) => Outcome::Aborted,
        (Known::Expired, _) | (_, true) => Outcome::Unknown,
        (Known::Running, false) => Outcome::InProgress,
        (Known::Prepared, false) => Outcome::Prepared,
        (Known::Unseen, false) => return None,
    })
}

/// The trace that is kept of an expired label: its FNV-1a hash of 64 bits, as a bigint.
pub fn trace(label: &[u8]) -> i64 {
    let hash = label.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Known; 6] = [
        Known::Running,
        Known::Prepared,
        Known::Committed,
        Known::Taken,
        Known::Expired,
        Known::Unseen,
    ];

    #[test]
    fn aborted_is_only_said_of_a_label_that_was_taken() {
        for known in ALL {
            for standby in [false, true] {
                for unconfirmed in [false, true] {
                    let said = outcome(known, standby, unconfirmed, true);
                    assert_eq!(said == Some(Outcome::Aborted), known == Known::Taken, "{known:?}");
                    let committed = matches!(said, Some(Outcome::Committed | Outcome::Committing));
                    assert_eq!(committed, known == Known::Committed, "{known:?}");
                }
            }
        }
    }

    #[test]
    fn a_standby_does_not_know_what_it_has_not_seen() {
        for known in [Known::Running, Known::Prepared, Known::Unseen, Known::Expired] {
            assert_eq!(outcome(known, true, false, true), Some(Outcome::Unknown));
        }
    }

    #[test]
    fn what_a_fail_over_may_take_back_is_not_told() {
        for known in ALL {
            let said = outcome(known, false, false, false);
            let is_final =
                matches!(said, Some(Outcome::Committed | Outcome::Committing | Outcome::Aborted));
            assert!(!is_final, "{known:?}: {said:?}");
        }
    }

    #[test]
    fn the_trace_is_fnv_1a() {
        assert_eq!(trace(b"") as u64, 0xcbf2_9ce4_8422_2325);
        assert_eq!(trace(b"a") as u64, 0xaf63_dc4c_8601_ec8c);
    }
}
