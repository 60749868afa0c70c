//! Which lines of an output differ from what is expected, and which of them must.

use std::collections::BTreeMap;

use similar::{ChangeTag, TextDiff};

/// Lines that must differ, each with its reason. A line is one of these if it contains the text.
const REASONS: &[(&str, &str)] = &[(
    "cannot PREPARE a transaction that has operated on postgres_fdw foreign tables",
    "it is prepared",
)];

/// The lines in which two texts differ.
pub struct Differences {
    /// Line number in the expected text, whether it is missing (`-`) or new (`+`), and the line.
    lines: Vec<(usize, char, String)>,
}

impl Differences {
    /// Compares line by line.
    pub fn between(expected: &str, result: &str) -> Self {
        let diff = TextDiff::configure()
            .timeout(std::time::Duration::from_secs(30))
            .diff_lines(expected, result);
        let mut number = 1;
        let mut lines = Vec::new();
        for change in diff.iter_all_changes() {
            let sign = match change.tag() {
                ChangeTag::Equal => None,
                ChangeTag::Delete => Some('-'),
                ChangeTag::Insert => Some('+'),
            };
            if let Some(sign) = sign {
                lines.push((number, sign, change.value().trim_end().to_owned()));
            }
            number += usize::from(change.tag() != ChangeTag::Insert);
        }
        Self { lines }
    }

    /// How many lines differ; one that is changed counts once.
    pub fn count(&self) -> usize {
        let count = |sign| self.lines.iter().filter(|(_, s, _)| *s == sign).count();
        count('-').max(count('+'))
    }

    /// How many of them are known to have to, by reason.
    pub fn reasons(&self) -> BTreeMap<&'static str, usize> {
        let mut reasons = BTreeMap::new();
        for reason in self.lines.iter().filter_map(|(.., line)| reason(line)) {
            *reasons.entry(reason).or_default() += 1;
        }
        reasons
    }

    /// Prints them, each known one with its reason.
    pub fn print(&self) {
        for (number, sign, line) in &self.lines {
            match reason(line) {
                Some(reason) => println!("{number:6} {sign} {line}    [{reason}]"),
                None => println!("{number:6} {sign} {line}"),
            }
        }
    }
}

fn reason(line: &str) -> Option<&'static str> {
    REASONS.iter().find(|(text, _)| line.contains(text)).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::Differences;

    #[test]
    fn changed_lines_count_once_and_known_ones_are_explained() {
        let expected = "a\nERROR:  cannot PREPARE a transaction that has operated on postgres_fdw foreign tables\nb\nc\n";
        let found = Differences::between(expected, "a\nb\nx\n");
        assert_eq!((found.count(), found.reasons().values().sum::<usize>()), (2, 1));
        assert_eq!(Differences::between("a\n", "a\n").count(), 0);
    }
}
