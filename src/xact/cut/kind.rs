//! How each server of a cut gets its snapshot.

use std::rc::Rc;

use super::refusals;
use super::transaction::Reading;
use crate::pg::error::Result;
use crate::pg::text;
use crate::remote::connection::Isolation;
use crate::xact::renewal;
use crate::xact::unit::{Member, Unit};

/// What becomes of transactions that have begun, and have nothing to lose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum May {
    /// They keep their snapshots, which belong to the transaction.
    Keep,
    /// They are begun again.
    Retake,
}

/// On which terms snapshots are taken.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    /// For this query, if for one.
    pub(super) unit: Option<&'a Rc<Unit>>,
    /// How the transaction reads.
    pub(super) reading: &'a Reading,
    pub(super) may: May,
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
pub(super) fn kind_of(member: &Member, terms: Terms) -> Result<Kind> {
    let Terms { unit, reading, may } = terms;
    let connection = &member.connection;
    let may_be_read_anew = may == May::Retake || connection.is_left_over();
    let begins_anew = match connection.isolation() {
        None => true,
        Some(Isolation::ReadCommitted) if reading.is_one_unit => {
            if !connection.has_nothing_to_lose() {
                return Err(refusals::modified_before(&text::carried(&connection.server_name)));
            }
            true
        }
        Some(Isolation::ReadCommitted) => {
            may_be_read_anew
                && connection.has_nothing_to_lose()
                && renewal::isolation(connection, unit) != Isolation::ReadCommitted
        }
        Some(_) => may_be_read_anew && connection.has_nothing_to_lose(),
    };
    let now = if begins_anew {
        renewal::isolation(connection, unit)
    } else {
        connection.isolation().unwrap_or(Isolation::RepeatableRead)
    };
    Ok(match now {
        Isolation::ReadCommitted => Kind::PerStatement,
        _ if begins_anew => Kind::Fresh,
        _ => Kind::Fixed,
    })
}
