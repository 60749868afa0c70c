//! Texts as parts of other texts: literals of SQL, values of a conninfo, names with escapes.

#![forbid(unsafe_code)]

/// A string literal for SQL. With backslashes it has the form `E''`, which does not depend on the
/// participant's `standard_conforming_strings`.
pub fn literal(text: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(text.len() + 3);
    if text.contains(&b'\\') {
        quoted.push(b'E');
    }
    quoted.push(b'\'');
    for &byte in text {
        if matches!(byte, b'\'' | b'\\') {
            quoted.push(byte);
        }
        quoted.push(byte);
    }
    quoted.push(b'\'');
    quoted
}

/// An option and its value as a part of a conninfo.
pub fn conninfo_pair(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut pair = [name, b"='"].concat();
    for &byte in value {
        if matches!(byte, b'\'' | b'\\') {
            pair.push(b'\\');
        }
        pair.push(byte);
    }
    pair.push(b'\'');
    pair
}

/// Replaces `%%` by `%`, and `%x` by what `fact` returns for `x`, or by nothing for an unknown
/// letter. A `%` at the end is left out.
pub fn expand(template: &[u8], fact: impl Fn(u8) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut name = Vec::with_capacity(template.len());
    let mut rest = template.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'%' => match rest.next() {
                Some(b'%') => name.push(b'%'),
                Some(&letter) => name.extend(fact(letter).unwrap_or_default()),
                None => {}
            },
            literal => name.push(literal),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fact(letter: u8) -> Option<Vec<u8>> {
        match letter {
            b'a' => Some(b"psql".to_vec()),
            b'e' => Some(vec![]),
            b'r' => Some(b"%a".to_vec()),
            _ => None,
        }
    }

    #[test]
    fn quotes_and_backslashes_are_doubled_in_a_literal() {
        assert_eq!(literal(b"plain \"x\""), b"'plain \"x\"'");
        assert_eq!(literal(b"it's"), b"'it''s'");
        assert_eq!(literal(br"a\b'"), br"E'a\\b'''");
        assert_eq!(literal(b""), b"''");
    }

    #[test]
    fn a_pair_is_quoted_as_libpq_reads_it() {
        assert_eq!(conninfo_pair(b"host", b"a b"), b"host='a b'");
        assert_eq!(conninfo_pair(b"host", br"it's\"), br"host='it\'s\\'");
    }

    #[test]
    fn escapes_are_replaced_once() {
        for (template, name) in [
            (&b"plain"[..], &b"plain"[..]),
            (b"", b""),
            (b"%a-%a", b"psql-psql"),
            (b"100%%", b"100%"),
            (b"%%a", b"%a"),
            (b"%r", b"%a"),
            (b"%e%q%%", b"%"),
            (b"tail%", b"tail"),
            (b"%", b""),
            (b"\xff%a\xfe", b"\xffpsql\xfe"),
        ] {
            assert_eq!(expand(template, fact), name, "{template:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_escapes_is_changed(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let quoted: Vec<u8> = text
                .iter()
                .flat_map(|&b| if b == b'%' { vec![b'%', b'%'] } else { vec![b] })
                .collect();
            prop_assert_eq!(expand(&quoted, fact), text.clone());
            // Any text is a valid template.
            let _ = expand(&text, fact);
        }
    }
}
