//! PostgreSQL's message framing, and which answer belongs to which statement. Pure: no I/O.
//!
//! A [`Framer`] cuts one direction's bytes into messages. A [`Conversation`] follows both
//! directions of one connection: it knows the text of each statement at the moment it is *executed*
//! (simple Query, or Execute of a portal whose statement was parsed before), and recognises the
//! answer to a statement that is watched, also in pipelines, where answers come in the order of the
//! requests and an error skips to the next Sync.

use std::collections::{HashMap, VecDeque};

use anyhow::{Result, bail};

/// One protocol message, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type byte; `None` for the packets before a session: start-up, cancel, requests for
    /// encryption.
    pub tag: Option<u8>,
    /// All its bytes, type and length included.
    pub bytes: Vec<u8>,
}

impl Message {
    /// A message of a server.
    ///
    /// # Panics
    /// It would be longer than the protocol allows.
    pub fn new(tag: u8, body: &[u8]) -> Self {
        let mut bytes = vec![tag];
        let length = u32::try_from(body.len() + 4).expect("tests send no gigabytes");
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(body);
        Self { tag: Some(tag), bytes }
    }

    /// The bytes behind type and length.
    pub fn body(&self) -> &[u8] {
        &self.bytes[if self.tag.is_some() { 5 } else { 4 }..]
    }

    /// Replaces a word, wherever it stands, by another of the same length.
    pub fn replace(&mut self, from: &[u8], to: &[u8]) {
        for at in 0..self.bytes.len() {
            if self.bytes[at..].starts_with(from) {
                self.bytes[at..at + to.len()].copy_from_slice(to);
            }
        }
    }

    /// Whether it asks for TLS or GSSAPI encryption; the server answers with a single byte.
    pub fn asks_for_encryption(&self) -> bool {
        self.tag.is_none() && matches!(self.body().get(..4), Some([0x04, 0xd2, 0x16, 0x2f | 0x30]))
    }

    /// Whether it is the packet that starts a session (protocol version 3).
    fn starts_session(&self) -> bool {
        self.tag.is_none() && self.body().starts_with(&[0, 3])
    }
}

/// Cuts a stream of bytes into messages.
#[derive(Debug)]
pub struct Framer {
    buffer: Vec<u8>,
    typed: bool,
}

impl Framer {
    /// For what the client sends: untyped packets until the one that starts the session.
    pub fn of_client() -> Self {
        Self { buffer: Vec::new(), typed: false }
    }

    /// For what the server sends: every message has a type.
    pub fn of_server() -> Self {
        Self { buffer: Vec::new(), typed: true }
    }

    /// Adds bytes as they were received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete message, `None` while it is not there yet.
    pub fn next_message(&mut self) -> Result<Option<Message>> {
        let header = usize::from(self.typed);
        let Some(length) = self.buffer.get(header..header + 4) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if length < 4 {
            bail!("a message claims a length of {length} bytes");
        }
        if self.buffer.len() < header + length {
            return Ok(None);
        }
        let bytes: Vec<u8> = self.buffer.drain(..header + length).collect();
        let message = Message { tag: self.typed.then(|| bytes[0]), bytes };
        self.typed |= message.starts_session();
        Ok(Some(message))
    }
}

/// Something the server still has to answer.
#[derive(Debug)]
enum Request {
    Execute { watched_by: Option<u64> },
    Query { watched_by: Option<u64> },
    Sync,
}

/// Follows one connection's requests and answers.
#[derive(Debug, Default)]
pub struct Conversation {
    statements: HashMap<String, String>,
    portals: HashMap<String, String>,
    requests: VecDeque<Request>,
}

impl Conversation {
    /// Notes a message of the client. If it has the server execute a statement, returns its text.
    pub fn sent(&mut self, message: &Message) -> Option<String> {
        let mut strings = Strings(message.body());
        match message.tag? {
            b'P' => {
                let (name, sql) = (strings.next()?, strings.next()?);
                self.statements.insert(name, sql);
                None
            }
            b'B' => {
                let (portal, statement) = (strings.next()?, strings.next()?);
                let sql = self.statements.get(&statement).cloned().unwrap_or_default();
                self.portals.insert(portal, sql);
                None
            }
            b'E' => {
                self.requests.push_back(Request::Execute { watched_by: None });
                let portal = strings.next()?;
                Some(self.portals.get(&portal).cloned().unwrap_or_default())
            }
            b'Q' => {
                self.requests.push_back(Request::Query { watched_by: None });
                strings.next()
            }
            b'F' => {
                self.requests.push_back(Request::Query { watched_by: None });
                None
            }
            b'S' => {
                self.requests.push_back(Request::Sync);
                None
            }
            _ => None,
        }
    }

    /// Watches for the answer to the statement that was sent last.
    pub fn watch_last(&mut self, watcher: u64) {
        if let Some(Request::Execute { watched_by } | Request::Query { watched_by }) =
            self.requests.back_mut()
        {
            *watched_by = Some(watcher);
        }
    }

    /// Notes a message of the server. Returns the watcher of a statement when this is the first
    /// message that tells of its outcome: rows, completion, an error, or the error of an earlier
    /// statement for which the server skips this one.
    pub fn received(&mut self, message: &Message) -> Option<u64> {
        match message.tag? {
            // Rows, COPY: part of the answer, not the end of it.
            b'D' | b'G' | b'H' | b'W' => self.take_watcher(),
            // Completed, empty query, portal suspended. A simple Query ends with ReadyForQuery
            // only.
            b'C' | b'I' | b's' => {
                let watcher = self.take_watcher();
                if matches!(self.requests.front(), Some(Request::Execute { .. })) {
                    self.requests.pop_front();
                }
                watcher
            }
            b'E' => {
                let mut watcher = None;
                while let Some(Request::Execute { watched_by }) = self.requests.front_mut() {
                    watcher = watcher.or(watched_by.take());
                    self.requests.pop_front();
                }
                watcher.or_else(|| self.take_watcher())
            }
            b'Z' => {
                let watcher = self.take_watcher();
                if matches!(self.requests.front(), Some(Request::Query { .. } | Request::Sync)) {
                    self.requests.pop_front();
                }
                watcher
            }
            _ => None,
        }
    }

    fn take_watcher(&mut self) -> Option<u64> {
        match self.requests.front_mut()? {
            Request::Execute { watched_by } | Request::Query { watched_by } => watched_by.take(),
            Request::Sync => None,
        }
    }
}

/// The zero-terminated strings at the start of a message's body.
struct Strings<'a>(&'a [u8]);

impl Iterator for Strings<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = String::from_utf8_lossy(&self.0[..end]).into_owned();
        self.0 = &self.0[end + 1..];
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::{Conversation, Framer, Message};

    fn message(tag: u8, body: &[u8]) -> Message {
        Message::new(tag, body)
    }

    fn untyped(body: &[u8]) -> Vec<u8> {
        let mut bytes = (u32::try_from(body.len()).unwrap() + 4).to_be_bytes().to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    /// Parse, Bind, Execute of an unnamed statement; the text that Execute was recognised to run.
    fn execute(conversation: &mut Conversation, sql: &str) -> Option<String> {
        conversation.sent(&message(b'P', format!("\0{sql}\0\0\0").as_bytes()));
        conversation.sent(&message(b'B', b"\0\0\0\0\0\0\0\0"));
        conversation.sent(&message(b'E', b"\0\0\0\0\0"))
    }

    #[test]
    fn messages_are_found_however_the_bytes_arrive() {
        let mut stream = untyped(&[0x04, 0xd2, 0x16, 0x2f]);
        stream.extend(untyped(b"\0\x03\0\0user\0me\0\0"));
        stream.extend(message(b'Q', b"SELECT 1\0").bytes);
        stream.extend(message(b'S', b"").bytes);
        for step in [1, 2, 3, 7, stream.len()] {
            let mut framer = Framer::of_client();
            let mut found = Vec::new();
            for piece in stream.chunks(step) {
                framer.push(piece);
                while let Some(message) = framer.next_message().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(
                found.iter().map(|m| m.tag).collect::<Vec<_>>(),
                [None, None, Some(b'Q'), Some(b'S')]
            );
            assert!(found[0].asks_for_encryption() && !found[1].asks_for_encryption());
            assert_eq!(found.concat_bytes(), stream);
        }
    }

    trait ConcatBytes {
        fn concat_bytes(&self) -> Vec<u8>;
    }

    impl ConcatBytes for Vec<Message> {
        fn concat_bytes(&self) -> Vec<u8> {
            self.iter().flat_map(|message| message.bytes.clone()).collect()
        }
    }

    #[test]
    fn an_impossible_length_is_an_error_and_no_endless_wait() {
        let mut framer = Framer::of_server();
        framer.push(&[b'Z', 0, 0, 0, 3, b'I']);
        assert!(framer.next_message().is_err());
    }

    #[test]
    fn statements_are_known_when_they_are_executed() {
        let mut conversation = Conversation::default();
        assert_eq!(execute(&mut conversation, "COMMIT"), Some("COMMIT".into()));
        assert_eq!(conversation.sent(&message(b'Q', b"ROLLBACK\0")), Some("ROLLBACK".into()));
        // A named statement, parsed long before.
        conversation.sent(&message(b'P', b"s1\0UPDATE t\0\0\0"));
        execute(&mut conversation, "BEGIN");
        conversation.sent(&message(b'B', b"p1\0s1\0\0\0\0\0\0\0"));
        assert_eq!(conversation.sent(&message(b'E', b"p1\0\0\0\0\0")), Some("UPDATE t".into()));
    }

    #[test]
    fn the_answer_of_a_watched_statement_in_a_pipeline_is_its_own() {
        let mut conversation = Conversation::default();
        execute(&mut conversation, "BEGIN");
        execute(&mut conversation, "PREPARE TRANSACTION 'a'");
        conversation.watch_last(7);
        conversation.sent(&message(b'S', b""));
        assert_eq!(conversation.received(&message(b'1', b"")), None);
        assert_eq!(conversation.received(&message(b'C', b"BEGIN\0")), None);
        assert_eq!(conversation.received(&message(b'2', b"")), None);
        assert_eq!(conversation.received(&message(b'C', b"PREPARE TRANSACTION\0")), Some(7));
        assert_eq!(conversation.received(&message(b'Z', b"I")), None);
    }

    #[test]
    fn an_error_answers_all_up_to_the_next_sync() {
        let mut conversation = Conversation::default();
        execute(&mut conversation, "INSERT");
        execute(&mut conversation, "PREPARE TRANSACTION 'a'");
        conversation.watch_last(7);
        conversation.sent(&message(b'S', b""));
        execute(&mut conversation, "ROLLBACK");
        conversation.watch_last(8);
        conversation.sent(&message(b'S', b""));
        assert_eq!(conversation.received(&message(b'E', b"\0")), Some(7));
        assert_eq!(conversation.received(&message(b'Z', b"I")), None);
        assert_eq!(conversation.received(&message(b'C', b"ROLLBACK\0")), Some(8));
    }

    #[test]
    fn a_simple_query_ends_with_ready_for_query() {
        let mut conversation = Conversation::default();
        conversation.sent(&message(b'Q', b"SELECT 1; SELECT 2\0"));
        conversation.watch_last(1);
        conversation.sent(&message(b'Q', b"COMMIT\0"));
        conversation.watch_last(2);
        assert_eq!(conversation.received(&message(b'T', b"")), None);
        assert_eq!(conversation.received(&message(b'D', b"")), Some(1));
        assert_eq!(conversation.received(&message(b'C', b"SELECT 1\0")), None);
        assert_eq!(conversation.received(&message(b'C', b"SELECT 1\0")), None);
        assert_eq!(conversation.received(&message(b'Z', b"I")), None);
        assert_eq!(conversation.received(&message(b'C', b"COMMIT\0")), Some(2));
    }
}
