//! A hostile shard: a real one whose answers are spoiled on their way, so that everything from the
//! set-up of a session to the resolver's questions is met with answers that nobody expects.
//!
//! What is said is well-formed as far as framing goes; all else is arbitrary: types and order of
//! messages, columns, values, tags, encodings, sizes. It is drawn from a seed.
//!
//! There are two kinds. What is [garbled](Manner::Garbled) cannot be taken for an answer to what was
//! asked, so nothing may go wrong by it, on any server. A shard that [lies](Manner::Lying), which
//! says in due form what is not true, may deceive others about itself, but not about the other
//! servers.
//!
//! | module | subject |
//! |---|---|
//! | `spoiling` | what becomes of one message |
//! | `values` | the columns of rows |
//! | `rounds` | transactions with such a shard, and what must be true afterwards |

mod kinds;
mod rounds;
mod spoiling;
mod values;

pub use rounds::{Options, Report, run};

use crate::bank::random::Random;
use crate::wire::Message;
use spoiling::Deed;

/// What may be done to answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Only what is no answer to the question.
    Garbled,
    /// Also what is one, and not true.
    Lying,
}

/// Which answers are spoiled, and how: the same for all connections to a server.
#[derive(Debug)]
pub struct Plan {
    random: Random,
    manner: Manner,
    /// So many messages pass before the first is spoiled.
    skip: u64,
    /// How often, in a hundred, each further one is.
    again: u64,
    /// Also spoils what is said before the session is ready.
    from_start: bool,
    /// The server may fall silent, which lasts as long as the client lets it.
    may_be_silent: bool,
    struck: Vec<String>,
}

impl Plan {
    /// Spoils one message after so many, and some of those behind it.
    pub fn draw(seed: u64, manner: Manner, may_be_silent: bool) -> Self {
        let mut random = Random::new(seed, 600);
        let from_start = random.chance(10);
        let skip = random.below(if from_start { 12 } else { 24 });
        let again = random.choose(&[0, 0, 0, 5, 30, 100]);
        let struck = Vec::new();
        Self { random, manner, skip, again, from_start, may_be_silent, struck }
    }

    /// What has been done.
    pub fn into_struck(self) -> Vec<String> {
        self.struck
    }

    /// What happens to this message, if anything.
    fn deed(&mut self, message: &Message) -> Option<Deed> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if !self.struck.is_empty() && !self.random.chance(self.again) {
            return None;
        }
        let deed = Deed::draw(&mut self.random, self.manner, self.may_be_silent, message);
        let tag = char::from(message.tag.unwrap_or(b'?'));
        self.struck.push(format!("{tag}: {}", deed.name()));
        Some(deed)
    }
}

/// The answers of one connection.
#[derive(Debug, Default)]
pub struct Stream {
    /// The server has said once that it is ready.
    started: bool,
    /// Nothing is said any more.
    silent: bool,
    /// What is said after the next message.
    held: Vec<u8>,
    /// What happens to the rows until their end.
    rows: Option<values::Shape>,
}

/// What is said to the client instead of a message.
#[derive(Debug, Default)]
pub struct Said {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The connection ends behind them.
    pub closes: bool,
}

impl Stream {
    /// What the client gets for a message of the server.
    pub fn pass(&mut self, message: &Message, plan: Option<&mut Plan>) -> Said {
        if self.silent {
            return Said::default();
        }
        let deed = plan.filter(|plan| self.started || plan.from_start);
        let deed = deed.and_then(|plan| plan.deed(message));
        self.started |= message.tag == Some(b'Z');
        let mut said = Said::default();
        let held = std::mem::take(&mut self.held);
        match (deed, &self.rows) {
            (Some(Deed::Hold), _) => self.held.clone_from(&message.bytes),
            (Some(Deed::Silence), _) => self.silent = true,
            (Some(Deed::Instead(_, bytes)), _) => said.bytes = bytes,
            (Some(Deed::Close(bytes)), _) => said = Said { bytes, closes: true },
            (Some(Deed::Reshape(shape)), _) => {
                said.bytes = shape.apply(message);
                self.rows = Some(shape);
            }
            (None, Some(shape)) => said.bytes = shape.apply(message),
            (None, None) => said.bytes.clone_from(&message.bytes),
        }
        if matches!(message.tag, Some(b'C' | b'E' | b'Z')) {
            self.rows = None;
        }
        said.bytes.extend(held);
        said
    }
}
