//! The targets.
//!
//! | target | what it is given | what it is compared with |
//! |---|---|---|
//! | `gid` | a text, and the parts of a gid | reading undoes writing, and accepts nothing else |
//! | `snapshot` | a text, and the parts of a snapshot | what the parts show |
//! | `cut` | rows and snapshots | the definition of a cut |
//! | `pipeline` | commands and answers in any order | a server that answers in order |
//! | `waits` | what sessions and servers say of their waits | the cycles that a plain search finds |
//! | `plan` | items of a plan in any order | what was accepted has what it has to have |
//! | `quoting` | texts for literals, conninfo, application names | reading undoes writing; libpq's own parser |
//! | `lexer` | statements, comments and white space in any order | the words that were put in |

mod pipeline;
mod protocol;
mod texts;
mod waits;

/// One of them; it panics where something is wrong.
pub type Target = fn(&[u8]);

/// All, by their names.
pub const ALL: [(&str, Target); 8] = [
    ("gid", protocol::gid),
    ("snapshot", protocol::snapshot),
    ("cut", protocol::cut),
    ("pipeline", pipeline::pipeline),
    ("waits", waits::waits),
    ("plan", texts::plan),
    ("quoting", texts::quoting),
    ("lexer", texts::lexer),
];

/// The one of a name.
pub fn named(name: &str) -> Option<Target> {
    ALL.iter().find(|(own, _)| *own == name).map(|(_, target)| *target)
}
