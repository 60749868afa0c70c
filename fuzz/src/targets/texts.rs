//! Plans, quoted texts, and statements by their words.

use std::ffi::{CString, c_int};

use crate::data::Data;
use crate::exec::lexer::{first_words, words};
use crate::exec::rules::Forbidden;
use crate::exec::unparsed::forbidden;
use crate::fdw::plan::decode::{Direct, Item, Modify, Scan};
use crate::remote::quoting::{expand, literal};

pub(super) fn plan(data: &[u8]) {
    let mut data = Data(data);
    let data = &mut data;
    let items: Vec<Item> = (0..data.below(7))
        .map(|_| match data.below(5) {
            0 => Item::Text(CString::new(without(data.bytes(), 0)).expect("no zero")),
            1 => Item::Integer(data.number() as c_int),
            2 => Item::Boolean(data.flag()),
            3 => Item::Integers((0..data.below(4)).map(|_| data.number() as c_int).collect()),
            _ => Item::Unknown,
        })
        .collect();
    if let Some(scan) = Scan::decode(&items) {
        assert!(scan.fetch_size > 0 && matches!(items.len(), 3 | 4));
        assert_eq!(items[0], Item::Text(scan.sql.clone()));
        assert_eq!(items[1], Item::Integers(scan.retrieved));
        // What locks rows does not end with a quote.
        assert!(!scan.locks_rows || !scan.sql.as_bytes().ends_with(b"'"));
    }
    let insert = data.flag();
    if let Some(modify) = Modify::decode(&items, insert) {
        assert!(items.len() == 5 && modify.values_end.is_some() == insert);
        assert!(modify.values_end.is_none_or(|end| end > 0 && end <= modify.sql.as_bytes().len()));
        assert_eq!(items[1], Item::Integers(modify.targets));
    }
    if let Some(direct) = Direct::decode(&items) {
        assert!(items.len() == 4 && items[1] == Item::Boolean(direct.returning.is_some()));
        assert_eq!(Scan::decode(&items), None);
    }
}

fn without(bytes: &[u8], unwanted: u8) -> Vec<u8> {
    bytes.iter().copied().filter(|byte| *byte != unwanted).collect()
}

pub(super) fn quoting(data: &[u8]) {
    let text = without(data, 0);
    assert_eq!(read_literal(&literal(&text)).as_deref(), Some(&text[..]));
    #[cfg(not(miri))]
    reads_as_libpq_does(&text);
    // Doubled, every `%` stays what it is.
    let doubled: Vec<u8> = text
        .iter()
        .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'%' { 2 } else { 1 }))
        .collect();
    let fact = |letter: u8| (letter != b'q').then(|| vec![letter, b'%']);
    assert_eq!(expand(&doubled, fact), text);
    let most = text.len() * 2;
    assert!(expand(&text, fact).len() <= most);
}

/// What PostgreSQL reads of a literal that is all of a text, with `standard_conforming_strings` on.
fn read_literal(text: &[u8]) -> Option<Vec<u8>> {
    let (has_escapes, text) = match text.strip_prefix(b"E") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut rest = text.strip_prefix(b"'")?;
    let mut read = Vec::new();
    loop {
        rest = match rest {
            [b'\''] => return Some(read),
            [b'\'', b'\'', rest @ ..] => {
                read.push(b'\'');
                rest
            }
            [b'\'', ..] | [] => return None,
            [b'\\', b'\\', rest @ ..] if has_escapes => {
                read.push(b'\\');
                rest
            }
            [b'\\', ..] if has_escapes => return None,
            [byte, rest @ ..] => {
                read.push(*byte);
                rest
            }
        };
    }
}

/// libpq takes the pairs apart again.
#[cfg(not(miri))]
fn reads_as_libpq_does(text: &[u8]) {
    use std::ffi::CStr;

    use crate::remote::quoting::conninfo_pair;

    let (host, service) = text.split_at(text.len() / 2);
    let pairs = [conninfo_pair(b"host", host), conninfo_pair(b"application_name", service)];
    let info = CString::new(pairs.join(&b' ')).expect("no zero");
    let mut found = Vec::new();
    // SAFETY: a C string; the array ends with a NULL keyword, its texts live until it is freed, and
    // it is freed once.
    unsafe {
        let parsed = pq_sys::PQconninfoParse(info.as_ptr(), std::ptr::null_mut());
        assert!(!parsed.is_null(), "libpq refuses {info:?}");
        let mut option = parsed;
        while !(*option).keyword.is_null() {
            let keyword = CStr::from_ptr((*option).keyword).to_bytes().to_vec();
            if !(*option).val.is_null() {
                found.push((keyword, CStr::from_ptr((*option).val).to_bytes().to_vec()));
            }
            option = option.add(1);
        }
        pq_sys::PQconninfoFree(parsed);
    }
    found.sort();
    let expected =
        [(b"application_name".to_vec(), service.to_vec()), (b"host".to_vec(), host.to_vec())];
    assert_eq!(found, expected);
}

/// Statements that end the transaction or leave something in the session.
const REFUSED: [(&[&str], Forbidden); 12] = [
    (&["COMMIT"], Forbidden::EndTransaction),
    (&["end"], Forbidden::EndTransaction),
    (&["Rollback"], Forbidden::EndTransaction),
    (&["abort"], Forbidden::EndTransaction),
    (&["prepare", "transaction"], Forbidden::EndTransaction),
    (&["START", "TRANSACTION"], Forbidden::BeginTransaction),
    (&["savepoint", "s"], Forbidden::Savepoint),
    (&["ROLLBACK", "TO", "s"], Forbidden::Savepoint),
    (&["commit", "prepared"], Forbidden::SettlePrepared),
    (&["DISCARD", "ALL"], Forbidden::SessionStatement),
    (&["listen", "a"], Forbidden::Notify),
    (&["create", "or", "replace", "temp"], Forbidden::Temporary),
];

pub(super) fn lexer(data: &[u8]) {
    // Any text: no word is longer than it, and all are in it.
    let found = first_words(data);
    let upper = data.to_ascii_uppercase();
    for word in &found {
        assert!(!word.is_empty() && upper.windows(word.len()).any(|window| window == &word[..]));
    }
    assert!(words(data).all(|word| word.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')));
    let _ = forbidden(data);
    // Between the words of a statement may be anything that PostgreSQL takes for white space.
    let mut data = Data(data);
    let (statement, effect) = data.choose(&REFUSED);
    let mut sql = Vec::new();
    for _ in 0..data.below(4) {
        gap(&mut data, &mut sql, 0);
        sql.extend(if data.flag() { b";" } else { b"(" });
    }
    gap(&mut data, &mut sql, 0);
    for word in statement {
        sql.extend(word.as_bytes());
        gap(&mut data, &mut sql, 1);
    }
    sql.extend(b";");
    sql.extend(data.0);
    let expected: Vec<Vec<u8>> =
        statement.iter().map(|word| word.to_ascii_uppercase().into_bytes()).collect();
    assert_eq!(first_words(&sql), expected, "{:?}", String::from_utf8_lossy(&sql));
    assert_eq!(forbidden(&sql).map(|(_, effect)| effect), Some(effect));
}

/// White space and comments, at least so many.
fn gap(data: &mut Data, sql: &mut Vec<u8>, least: u8) {
    for _ in 0..least + data.below(3) {
        match data.below(8) {
            0..4 => sql.push(data.choose(b" \t\n\r\x0b\x0c")),
            4 => {
                sql.extend(b"--");
                sql.extend(data.bytes().iter().filter(|byte| !matches!(byte, b'\n' | b'\r')));
                sql.push(data.choose(b"\n\r"));
            }
            _ => comment(data, sql, 3),
        }
    }
}

/// A comment with others in it.
fn comment(data: &mut Data, sql: &mut Vec<u8>, depth: u8) {
    sql.extend(b"/*");
    sql.extend(data.bytes().iter().filter(|byte| !matches!(byte, b'*' | b'/')));
    if depth > 0 && data.flag() {
        comment(data, sql, depth - 1);
    }
    sql.extend(b" ");
    sql.extend(b"*/");
}
