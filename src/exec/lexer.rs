//! The words of a statement, as any version of PostgreSQL reads them.

#![forbid(unsafe_code)]

fn is_in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// All words of a text, those in quotes and comments too.
pub fn words(sql: &[u8]) -> impl Iterator<Item = &[u8]> {
    sql.split(|b| !is_in_word(*b)).filter(|word| !word.is_empty())
}

/// The first words of a statement in upper case, without comments and what may stand in front of
/// it.
pub fn first_words(sql: &[u8]) -> Vec<Vec<u8>> {
    const ENOUGH: usize = 5;
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut rest = skip_space(sql);
    while let Some((b';' | b'(', behind)) = rest.split_first() {
        rest = skip_space(behind);
    }
    while words.len() < ENOUGH {
        let length = rest.iter().take_while(|b| is_in_word(**b)).count();
        if length == 0 {
            break;
        }
        words.push(rest[..length].to_ascii_uppercase());
        rest = skip_space(&rest[length..]);
    }
    words
}

/// What follows white space and comments, which nest. A vertical tab is white space from PostgreSQL
/// 16 on.
fn skip_space(mut sql: &[u8]) -> &[u8] {
    loop {
        let space = sql.iter().take_while(|b| b.is_ascii_whitespace() || **b == b'\x0B').count();
        sql = &sql[space..];
        if let Some(line) = sql.strip_prefix(b"--") {
            let end = line.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(line.len());
            sql = &line[end..];
        } else if sql.starts_with(b"/*") {
            let mut depth = 0;
            let mut at = 0;
            loop {
                match sql.get(at..at + 2) {
                    Some(b"/*") => (depth, at) = (depth + 1, at + 2),
                    Some(b"*/") => (depth, at) = (depth - 1, at + 2),
                    Some(_) => at += 1,
                    None => return &[],
                }
                if depth == 0 {
                    break;
                }
            }
            sql = &sql[at..];
        } else {
            return sql;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(sql: &str) -> Vec<String> {
        first_words(sql.as_bytes())
            .into_iter()
            .map(|word| String::from_utf8(word).expect("ASCII"))
            .collect()
    }

    #[test]
    fn first_words_come_after_comments_and_what_may_stand_in_front() {
        assert_eq!(first(" /* a /* b */ c */ -- d\n ((select 1"), ["SELECT", "1"]);
        assert_eq!(first(";\x0B; rollback\x0Bto s"), ["ROLLBACK", "TO", "S"]);
        assert_eq!(first("a b c d e f"), ["A", "B", "C", "D", "E"]);
    }

    #[test]
    fn an_open_comment_hides_all_that_follows() {
        assert!(first("/* COMMIT").is_empty());
        assert!(first("/*/ COMMIT").is_empty());
    }

    #[test]
    fn words_are_found_inside_of_quotes_too() {
        let found: Vec<_> = words(b"SELECT \"a_1\".b('c')").collect();
        assert_eq!(found, [&b"SELECT"[..], b"a_1", b"b", b"c"]);
    }
}
