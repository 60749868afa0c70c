//! What the items of a plan say, once they have been read.

#![forbid(unsafe_code)]

use std::ffi::{CString, c_int};

/// Column numbers: positive ones of user columns, -1 is `ctid`.
pub type Columns = Vec<c_int>;

/// The plan of a scan.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// The query.
    pub sql: CString,
    /// Which column of the scan's tuples each column of the result is.
    pub retrieved: Columns,
    /// Rows per FETCH, at least 1.
    pub fetch_size: usize,
    /// The query locks the rows that it reads.
    pub locks_rows: bool,
}

/// The plan of a modification that is executed row by row.
#[derive(Debug, PartialEq, Eq)]
pub struct Modify {
    /// The command, for one row.
    pub sql: CString,
    /// The columns it sets, in the order of its parameters.
    pub targets: Columns,
    /// Where its first VALUES row ends; only in an INSERT.
    pub values_end: Option<usize>,
    /// Which column of the target each column of RETURNING is; `None` without RETURNING.
    pub returning: Option<Columns>,
}

/// The plan of a modification that runs as one remote command.
#[derive(Debug, PartialEq, Eq)]
pub struct Direct {
    /// The command.
    pub sql: CString,
    /// Which column of the scan's tuples each column of RETURNING is; `None` without RETURNING.
    pub returning: Option<Columns>,
    /// Whether its rows count for the command tag of the local statement.
    pub counts: bool,
}

/// One item of a list, if it is of a known kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A text.
    Text(CString),
    /// A number.
    Integer(c_int),
    /// A truth value.
    Boolean(bool),
    /// A list of numbers, which may be empty.
    Integers(Columns),
    /// Anything else.
    Unknown,
}

impl Scan {
    /// `None` if the items do not have the known layout.
    pub fn decode(items: &[Item]) -> Option<Self> {
        let [Item::Text(sql), Item::Integers(retrieved), Item::Integer(fetch_size), rest @ ..] =
            items
        else {
            return None;
        };
        let fetch_size = usize::try_from(*fetch_size).ok().filter(|&n| n > 0)?;
        matches!(rest, [] | [Item::Text(_)]).then(|| Self {
            sql: sql.clone(),
            retrieved: retrieved.clone(),
            fetch_size,
            locks_rows: locks_rows(sql.as_bytes()),
        })
    }
}

/// Whether a query of postgres_fdw's ends with a locking clause. A text constant that looks like
/// one would end with a quote.
fn locks_rows(sql: &[u8]) -> bool {
    // In a join it names the table by its alias, `r` and a number.
    let without_digits = sql.trim_ascii_end();
    let digits = without_digits.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let without_alias = without_digits[..without_digits.len() - digits].strip_suffix(b" OF r");
    let clause = without_alias.filter(|_| digits > 0).unwrap_or(sql);
    clause.ends_with(b" FOR UPDATE") || clause.ends_with(b" FOR SHARE")
}

impl Modify {
    /// `None` if the items do not have the known layout; `insert` says that it is an INSERT.
    pub fn decode(items: &[Item], insert: bool) -> Option<Self> {
        let [
            Item::Text(sql),
            Item::Integers(targets),
            Item::Integer(values_end),
            Item::Boolean(has_returning),
            Item::Integers(retrieved),
        ] = items
        else {
            return None;
        };
        let values_end = match (insert, *values_end) {
            (true, end) => {
                let end = usize::try_from(end).ok()?;
                Some((1..=sql.as_bytes().len()).contains(&end).then_some(end)?)
            }
            (false, -1) => None,
            (false, _) => return None,
        };
        Some(Self {
            sql: sql.clone(),
            targets: targets.clone(),
            values_end,
            returning: has_returning.then(|| retrieved.clone()),
        })
    }
}

impl Direct {
    /// `None` if the items do not have the known layout.
    pub fn decode(items: &[Item]) -> Option<Self> {
        let [
            Item::Text(sql),
            Item::Boolean(has_returning),
            Item::Integers(retrieved),
            Item::Boolean(counts),
        ] = items
        else {
            return None;
        };
        Some(Self {
            sql: sql.clone(),
            returning: has_returning.then(|| retrieved.clone()),
            counts: *counts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(sql: &str) -> Item {
        Item::Text(CString::new(sql).unwrap())
    }

    fn none() -> Item {
        Item::Integers(vec![])
    }

    #[test]
    fn a_scan_has_three_items_and_a_join_four() {
        let mut items = vec![text("SELECT 1"), none(), Item::Integer(100)];
        let scan = Scan::decode(&items).unwrap();
        assert_eq!(scan.fetch_size, 100);
        items.push(text("(a) INNER JOIN (b)"));
        assert_eq!(Scan::decode(&items), Some(scan));
        items.push(none());
        assert_eq!(Scan::decode(&items), None);
    }

    #[test]
    fn a_scan_fetches_at_least_one_row() {
        assert_eq!(Scan::decode(&[text(""), none(), Item::Integer(0)]), None);
        assert_eq!(Scan::decode(&[text(""), none(), Item::Integer(-1)]), None);
    }

    #[test]
    fn a_query_that_locks_rows_says_so_at_its_end() {
        for (sql, expected) in [
            ("SELECT id FROM t WHERE ((id = 1)) FOR UPDATE", true),
            ("SELECT id FROM t FOR SHARE", true),
            (
                "SELECT r1.id FROM (t r1 INNER JOIN t r2 ON (TRUE)) FOR UPDATE OF r1 FOR SHARE OF r12",
                true,
            ),
            ("SELECT id FROM t", false),
            ("SELECT id FROM t WHERE ((v = ' FOR UPDATE'))", false),
            ("SELECT id FROM t WHERE ((v = ' FOR UPDATE OF r1'))", false),
            ("SELECT id FROM t ORDER BY 1", false),
            ("", false),
        ] {
            assert_eq!(locks_rows(sql.as_bytes()), expected, "{sql}");
        }
    }

    #[test]
    fn a_direct_modification_is_no_scan() {
        let items = [text("DELETE"), Item::Boolean(false), none(), Item::Boolean(true)];
        assert_eq!(Scan::decode(&items), None);
        assert_eq!(Modify::decode(&items, false), None);
        let direct = Direct::decode(&items).unwrap();
        assert!(direct.counts);
        assert_eq!(direct.returning, None);
        let mut unknown = items;
        unknown[2] = Item::Unknown;
        assert_eq!(Direct::decode(&unknown), None);
    }

    #[test]
    fn the_end_of_values_lies_inside_of_an_insert() {
        let with_end = |end| {
            [
                text("INSERT INTO t(a) VALUES ($1)"),
                Item::Integers(vec![1]),
                Item::Integer(end),
                Item::Boolean(true),
                Item::Integers(vec![-1, 1]),
            ]
        };
        let insert = Modify::decode(&with_end(28), true).unwrap();
        assert_eq!(insert.values_end, Some(28));
        assert_eq!(insert.returning, Some(vec![-1, 1]));
        for end in [-1, 0, 29] {
            assert_eq!(Modify::decode(&with_end(end), true), None);
        }
        assert_eq!(Modify::decode(&with_end(28), false), None);
        assert_eq!(Modify::decode(&with_end(-1), false).unwrap().values_end, None);
    }
}
