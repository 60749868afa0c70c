//! Rows in the text format of COPY.

/// Appends a row; `None` is NULL.
pub fn push_row<'a>(text: &mut Vec<u8>, values: impl IntoIterator<Item = Option<&'a [u8]>>) {
    for (n, value) in values.into_iter().enumerate() {
        if n > 0 {
            text.push(b'\t');
        }
        match value {
            Some(value) => push_value(text, value),
            None => text.extend_from_slice(b"\\N"),
        }
    }
    text.push(b'\n');
}

/// In every encoding that a server can have, such a byte is never part of another character.
fn is_escaped(byte: u8) -> bool {
    matches!(byte, b'\\' | b'\n' | b'\r' | b'\t')
}

fn push_value(text: &mut Vec<u8>, value: &[u8]) {
    let mut rest = value;
    // Few values have any. To look at all bytes without stopping is many at a time.
    if value.iter().fold(false, |any, &byte| any | is_escaped(byte)) {
        while let Some(at) = rest.iter().position(|&byte| is_escaped(byte)) {
            text.extend_from_slice(&rest[..at]);
            text.extend_from_slice(match rest[at] {
                b'\n' => b"\\n",
                b'\r' => b"\\r",
                b'\t' => b"\\t",
                _ => b"\\\\",
            });
            rest = &rest[at + 1..];
        }
    }
    text.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[Option<&str>]) -> String {
        let mut text = Vec::new();
        push_row(&mut text, values.iter().map(|value| value.map(str::as_bytes)));
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_separates_is_escaped() {
        assert_eq!(row(&[Some("a\tb\nc\rd\\e"), None]), "a\\tb\\nc\\rd\\\\e\t\\N\n");
    }

    #[test]
    fn neither_null_nor_the_end_can_be_written_as_a_value() {
        assert_eq!(row(&[Some("\\N"), Some(""), Some("\\.")]), "\\\\N\t\t\\\\.\n");
        assert_eq!(row(&[Some("ü—\u{1F40C}")]), "ü—\u{1F40C}\n");
    }
}
