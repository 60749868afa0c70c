//! What is told of a participant that has not confirmed the outcome: one text, whoever finds out.

use crate::pg::error::{Error, SqlState};
use crate::pg::text;
use crate::protocol::gid::Gid;

/// `server` has not confirmed that `gid` was settled as the decision says.
pub fn unconfirmed(server: &str, gid: &Gid, is_committed: bool) -> Error {
    let (command, outcome) = if is_committed {
        ("COMMIT PREPARED", "committed")
    } else {
        ("ROLLBACK PREPARED", "rolled back")
    };
    let server = text::in_ascii(server);
    Error::new(
        SqlState::CONNECTION_FAILURE,
        format!("server \"{server}\" has not confirmed {command} '{gid}'"),
    )
    .detail(format!("The transaction is {outcome}."))
    .hint("The resolver delivers it as soon as the server can be reached.")
}
