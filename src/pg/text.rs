//! Text in the server's encoding, in messages that `format!` puts together.
//!
//! A `String` is UTF-8; a name in a database of another encoding need not be. Each byte that is not
//! part of valid UTF-8 travels in the `String` as a character that stands for it (U+10FF80 to
//! U+10FFFF, which occur in no text), and [`Error`] turns it into the byte again. The rest stays as
//! it is.
//!
//! [`Error`]: crate::pg::error::Error

use std::ffi::CStr;

/// Stands for the byte 0x80; the others follow.
const FIRST: u32 = 0x10_FF80;

/// A name as a part of a message.
pub fn carried(name: &CStr) -> String {
    let mut text = String::new();
    for chunk in name.to_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if u32::from(c) < FIRST {
                text.push(c);
            } else {
                text.extend(c.encode_utf8(&mut [0; 4]).bytes().filter_map(stand_in));
            }
        }
        text.extend(chunk.invalid().iter().copied().filter_map(stand_in));
    }
    text
}

fn stand_in(byte: u8) -> Option<char> {
    char::from_u32(FIRST + u32::from(byte.checked_sub(0x80)?))
}

/// The bytes of a message, with those that were [`carried`] as they were.
pub fn put_back(message: impl Into<Vec<u8>>) -> Vec<u8> {
    let mut message = message.into();
    if !message.contains(&0xF4) {
        return message;
    }
    let mut from = 0;
    let mut to = 0;
    while from < message.len() {
        let (byte, length) = match message[from..] {
            [0xF4, 0x8F, a @ (0xBE | 0xBF), b @ 0x80..=0xBF, ..] => {
                (0x80 | ((a & 1) << 6) | (b & 0x3F), 4)
            }
            [byte, ..] => (byte, 1),
            [] => break,
        };
        message[to] = byte;
        from += length;
        to += 1;
    }
    message.truncate(to);
    message
}

/// A [`carried`] name for output that has to be ASCII: all else becomes escapes.
pub fn in_ascii(name: &str) -> String {
    let escape = |c: char| match u32::from(c).checked_sub(FIRST) {
        Some(byte) => format!("\\x{:02x}", byte + 0x80),
        None => c.escape_default().to_string(),
    };
    name.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_comes_out_as_it_was() {
        for name in [
            &b"shard1"[..],
            "zürich 数据 🐘".as_bytes(),
            b"z\xFCrich",
            b"\xE9",
            b"\xC3\xA9 \xE9 \x80\xFF",
            "\u{10FF80}\u{10FFFF}\u{10FF7F}".as_bytes(),
        ] {
            let name = std::ffi::CString::new(name).unwrap();
            let message = format!("server \"{}\"", carried(&name));
            let expected = [b"server \"", name.to_bytes(), b"\""].concat();
            assert_eq!(put_back(message), expected, "{name:?}");
        }
        assert_eq!(carried(c"z\xC3\xBCrich"), "zürich");
        assert_eq!(put_back(&b"\xF4\x8F\xBE"[..]), b"\xF4\x8F\xBE");
    }

    #[test]
    fn nothing_but_ascii_is_left_of_a_name() {
        assert_eq!(in_ascii(&carried(c"z\xFCrich")), "z\\xfcrich");
        assert_eq!(in_ascii("zürich"), "z\\u{fc}rich");
    }
}
