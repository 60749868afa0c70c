//! What a fault does, and at which statement.

use crate::wire::Message;

/// Where a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The statement has not reached the server.
    Statement,
    /// The server has executed it; its answer has not reached the client.
    Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Cut,
    Hold,
    Replace,
}

/// What to do, and at which statement.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(super) prefix: String,
    pub(super) point: Point,
    pub(super) effect: Effect,
    /// What stands in place of the answer's first message.
    pub(super) instead: Vec<u8>,
}

impl Fault {
    /// Cuts the connection at a statement that starts with `prefix` (in any case of letters).
    pub fn cut(point: Point, prefix: &str) -> Self {
        Self { prefix: prefix.to_uppercase(), point, effect: Effect::Cut, instead: Vec::new() }
    }

    /// Holds the connection there until [`Hit::release`](super::Hit::release); the other direction goes on.
    pub fn hold(point: Point, prefix: &str) -> Self {
        Self { prefix: prefix.to_uppercase(), point, effect: Effect::Hold, instead: Vec::new() }
    }

    /// Puts another message in the place of the first row that answers the statement, or of its
    /// completion if there is none.
    pub fn answer(prefix: &str, instead: &Message) -> Self {
        let (point, instead) = (Point::Answer, instead.bytes.clone());
        Self { prefix: prefix.to_uppercase(), point, effect: Effect::Replace, instead }
    }
}
