//! How the session shows statements and reports.

use postgres::error::DbError;

/// A statement in one line of at most `width` characters. Names of prepared transactions are cut,
/// because they are long and say nothing here.
pub fn shortened(statement: &str, width: usize) -> String {
    let words = statement
        .split_whitespace()
        .map(|word| if word.starts_with("'px_") { "'px_…'" } else { word });
    let line = words.collect::<Vec<_>>().join(" ");
    if line.chars().count() <= width {
        return line;
    }
    let cut: String = line.chars().take(width - 1).collect();
    format!("{}…", cut.trim_end())
}

/// An error or warning as psql shows it.
pub fn report(report: &DbError) -> String {
    let mut text = format!("{}:  {}", report.severity(), report.message());
    for (label, part) in [("DETAIL", report.detail()), ("HINT", report.hint())] {
        if let Some(part) = part {
            text += &format!("\n{label}:  {part}");
        }
    }
    text
}

/// Whether a statement only sets up a session or asks for its state, as in every session.
pub fn is_housekeeping(statement: &str) -> bool {
    let start = statement.trim_start().to_uppercase();
    start.starts_with("SET ") || start.starts_with("SELECT")
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn statements_fit_into_their_column() {
        assert_eq!(shortened("COMMIT", 10), "COMMIT");
        assert_eq!(shortened("COMMIT PREPARED 'px_0123_4_5'", 28), "COMMIT PREPARED 'px_…'");
        assert_eq!(shortened("INSERT\n  INTO t VALUES (1)", 12), "INSERT INTO…");
    }
}
