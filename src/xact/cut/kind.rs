//! How each server of a cut gets its snapshot.

use super::refusals;
use super::transaction::Reading;
use crate::pg::error::Result;
use crate::pg::text;
use crate::remote::connection::Isolation;
use crate::xact::renewal;
use crate::xact::unit::Member;

/// What becomes of transactions that have begun, and have nothing to lose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum May {
    /// They keep their snapshots, which belong to the transaction.
    Keep,
    /// They are begun again.
    Retake,
}

/// How a server gets its snapshot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its transaction has one, which stays.
    Fixed,
    /// Its transaction is begun, or begun again.
    Fresh,
    /// Each statement has its own. Those of cursors that are opened together lie between two that
    /// are told before and behind them; so if both fit, they do. They can be opened again.
    PerStatement,
}

/// How a server gets its snapshot.
///
/// # Errors
/// 25001: it is to stay for the whole transaction, and cannot.
pub(super) fn kind_of(member: &Member, reading: &Reading, may: May) -> Result<Kind> {
    let connection = &member.connection;
    let may_be_read_anew = may == May::Retake || connection.is_left_over();
    let begins_anew = match connection.isolation() {
        None => true,
        Some(Isolation::ReadCommitted) if reading.is_one_unit => {
            if !connection.may_retake() {
                return Err(refusals::modified_before(&text::carried(&connection.server_name)));
            }
            true
        }
        Some(Isolation::ReadCommitted) => return Ok(Kind::PerStatement),
        Some(_) => may_be_read_anew && connection.may_retake(),
    };
    Ok(match renewal::isolation(connection, None) {
        Isolation::ReadCommitted if begins_anew => Kind::PerStatement,
        _ if begins_anew => Kind::Fresh,
        _ => Kind::Fixed,
    })
}
