//! What becomes of one message of a hostile shard.

use super::Manner;
use super::values::{Shape, description_of, row_of, with_value};
use crate::bank::random::Random;
use crate::wire::Message;

/// What is done to a message.
#[derive(Debug)]
pub(super) enum Deed {
    /// These bytes are sent in its place.
    Instead(String, Vec<u8>),
    /// It is sent after the next.
    Hold,
    /// It and all rows until the end of the answer get other columns.
    Reshape(Shape),
    /// Neither it nor anything else is sent on this connection.
    Silence,
    /// These bytes are sent, and the connection ends.
    Close(Vec<u8>),
}

/// Texts that stand where others are expected.
const TEXTS: &[&[u8]] = &[
    b"",
    b"x",
    b"-1",
    b"0",
    b"999999999999999999999999",
    b"{",
    b"{NULL}",
    b"1:1:",
    b"5:4:3,2",
    b"px_1_2_3",
    b"\xff\xfe\xc3",
    b"\xe2\x82",
    b"'; SELECT 1; --",
    b"%s%n%s",
];

/// Command tags of no command that is ever sent.
const TAGS: &[&[u8]] = &[
    b"",
    b"SELECT",
    b"SELECT 99999999999999999999",
    b"INSERT 0 5000000",
    b"INSERT x y",
    b"PREPARED",
    b"\xff",
];

/// Command tags that mean something.
const TRUE_TAGS: &[&[u8]] = &[
    b"ROLLBACK",
    b"COMMIT",
    b"BEGIN",
    b"START TRANSACTION",
    b"PREPARE TRANSACTION",
    b"COMMIT PREPARED",
    b"ROLLBACK PREPARED",
    b"SELECT 0",
    b"INSERT 0 1",
];

/// SQLSTATEs that mean something.
const CODES: &[&str] = &[
    "42704", "25P02", "26000", "40001", "40P01", "55000", "55006", "57014", "22012", "42501",
    "08006", "25006", "53300", "XX000", "00000", "!!",
];

/// Settings that a server reports.
const SETTINGS: &[(&str, &[&str])] = &[
    ("client_encoding", &["LATIN1", "SQL_ASCII", "EUC_JP", "GB18030", "nonsense", ""]),
    ("server_encoding", &["LATIN1", "nonsense"]),
    ("server_version", &["7.4", "99.9", "x", ""]),
    ("standard_conforming_strings", &["off", "x"]),
    ("integer_datetimes", &["off"]),
    ("in_hot_standby", &["on"]),
    ("", &[""]),
];

/// Types of messages that a server can send, and some that it cannot.
const ALL: &[u8] = b"123ACDEGHIKNRSTVWZcdnstvpx\x00\xff";

impl Deed {
    /// Draws one.
    pub(super) fn draw(
        random: &mut Random,
        manner: Manner,
        may_be_silent: bool,
        message: &Message,
    ) -> Self {
        if manner == Manner::Lying && random.chance(40) {
            return lie(random, message);
        }
        let is_row = message.tag == Some(b'D');
        match random.below(if is_row { 36 } else { 30 }) {
            0..8 => {
                let (name, unasked) = unasked(random);
                let bytes = match random.below(3) {
                    0 => unasked,
                    1 => [unasked, message.bytes.clone()].concat(),
                    _ => [message.bytes.clone(), unasked].concat(),
                };
                // A row that is missing is a lie.
                let bytes = if is_row { [bytes, message.bytes.clone()].concat() } else { bytes };
                Self::Instead(name, bytes)
            }
            8..10 => noticed(random, message),
            10..12 => {
                let (name, values) = random.choose(SETTINGS);
                let value = random.choose(values);
                let body = format!("{name}\0{value}\0");
                let bytes = [Message::new(b'S', body.as_bytes()).bytes, message.bytes.clone()];
                Self::Instead(format!("{name} = {value}"), bytes.concat())
            }
            12 => Self::Instead("twice".to_owned(), message.bytes.repeat(2)),
            13 if !is_row => Self::Instead("left out".to_owned(), Vec::new()),
            13 | 14 => Self::Hold,
            15..17 => {
                let tag = random.choose(TAGS);
                let end = Message::new(b'C', &[tag, b"\0"].concat()).bytes;
                let name = format!("C {}", String::from_utf8_lossy(tag));
                Self::Instead(name, end)
            }
            17 => {
                let state = random.choose(b"ETI?\0\xff");
                let ready = Message::new(b'Z', &[state]).bytes;
                Self::Instead(format!("Z {state:#x}"), ready)
            }
            18 => Self::Instead("E without fields".to_owned(), Message::new(b'E', b"\0").bytes),
            19 => {
                let body = b"SERROR\0VERROR\0Mno code\0\0";
                Self::Instead("E without a code".to_owned(), Message::new(b'E', body).bytes)
            }
            20..22 => {
                let code = random.choose(&["57P01", "57P02", "08P01", "42704", "XX000"]);
                let fatal = error("FATAL", code, b"gone").bytes;
                if random.chance(50) {
                    return Self::Close(fatal);
                }
                Self::Instead(format!("FATAL {code}, and no end"), fatal)
            }
            22..24 => Self::Reshape(Shape::draw(random)),
            24 if may_be_silent => Self::Silence,
            24 | 25 => Self::Close(message.bytes[..message.bytes.len() / 2].to_vec()),
            26 => Self::Close(Vec::new()),
            27 => {
                let (tag, length) = (random.choose(ALL), random.choose(&[0, 3, 5, 0x7fff_ffff]));
                let bytes = [&[tag][..], &u32::to_be_bytes(length), b"abc"].concat();
                Self::Close(bytes)
            }
            28..30 => noise(random, message),
            _ => {
                let text = random.choose(TEXTS);
                let bytes = with_value(message, random, |_, _| text.to_vec());
                Self::Instead(format!("value {:?}", String::from_utf8_lossy(text)), bytes)
            }
        }
    }

    /// In words.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Instead(name, _) => name.clone(),
            Self::Close(bytes) => format!("end after {} bytes", bytes.len()),
            other => format!("{other:?}"),
        }
    }
}

/// Something in due form that is not true.
fn lie(random: &mut Random, message: &Message) -> Deed {
    match (message.tag, random.below(4)) {
        (Some(b'D'), 0) => Deed::Instead("a row left out".to_owned(), Vec::new()),
        (Some(b'D'), _) => {
            let bytes = with_value(message, random, |random, was| match was {
                b"t" => b"f".to_vec(),
                b"f" => b"t".to_vec(),
                _ => {
                    let mut changed = was.to_vec();
                    let digits = changed.iter_mut().filter(|byte| byte.is_ascii_digit());
                    digits.for_each(|digit| *digit = b'0' + random.below(10) as u8);
                    changed
                }
            });
            Deed::Instead("another value".to_owned(), bytes)
        }
        (Some(b'C' | b'E' | b'I'), 0..2) => {
            let tag = random.choose(TRUE_TAGS);
            let name = format!("C {}", String::from_utf8_lossy(tag));
            Deed::Instead(name, Message::new(b'C', &[tag, b"\0"].concat()).bytes)
        }
        _ => {
            let code = random.choose(CODES);
            Deed::Instead(format!("E {code}"), error("ERROR", code, b"a lie").bytes)
        }
    }
}

fn error(severity: &str, code: &str, text: &[u8]) -> Message {
    let head = format!("S{severity}\0V{severity}\0C{code}\0M");
    Message::new(b'E', &[head.as_bytes(), text, b"\0\0"].concat())
}

/// Notices before the message: one, or more than anybody wants to read, or one that is long.
fn noticed(random: &mut Random, message: &Message) -> Deed {
    let (count, length) = random.choose(&[(1, 10), (20_000, 10), (1, 3_000_000), (3, 0)]);
    let mut notice = error("NOTICE", "00000", &vec![b'n'; length]).bytes;
    notice[0] = b'N';
    let bytes = [notice.repeat(count), message.bytes.clone()].concat();
    Deed::Instead(format!("{count} notices of {length}"), bytes)
}

/// A message that nobody asked for. None of them ends a command as it should end.
fn unasked(random: &mut Random) -> (String, Vec<u8>) {
    let text = random.choose(TEXTS);
    let count = random.choose(&[0, 1, 2, 1600]);
    let message = match random.below(14) {
        0 => row_of(count, text),
        1 => description_of(count, b"c", random.choose(&[0, 23, 25, 17, u32::MAX]), 0),
        2 => description_of(count, b"", 17, 1),
        3 => [description_of(count, b"c", 25, 0), row_of(count, text)].concat(),
        4 => row_of(1, &vec![b'y'; 20_000_000]),
        5 => Message::new(random.choose(b"GHW"), &[0, 0, 0]).bytes,
        6 => Message::new(random.choose(b"dc"), text).bytes,
        7 => Message::new(random.choose(b"In123s"), b"").bytes,
        8 => Message::new(b'A', &[b"\0\0\0\x07c\0", text, b"\0"].concat()).bytes,
        9 => Message::new(b'K', b"\0\0\x12\x34\0\0\x56\x78").bytes,
        10 => {
            let kind: u32 = random.choose(&[0, 3, 5, 7, 10, 11, 12, 99]);
            Message::new(b'R', &[&kind.to_be_bytes()[..], text].concat()).bytes
        }
        11 => Message::new(b't', b"\0\x01\0\0\0\x17").bytes,
        12 => Message::new(b'Z', b"I").bytes,
        _ => Message::new(random.choose(ALL), text).bytes,
    };
    (format!("unasked {:?}, {count} columns", char::from(message[0])), message)
}

/// Messages of all types in any order.
fn noise(random: &mut Random, message: &Message) -> Deed {
    let mut bytes = Vec::new();
    let count = 1 + random.below(40);
    for _ in 0..count {
        bytes.extend(unasked(random).1);
    }
    if random.chance(50) {
        return Deed::Close(bytes);
    }
    // A row that is missing is a lie.
    bytes.extend(&message.bytes);
    Deed::Instead(format!("noise of {count}"), bytes)
}
