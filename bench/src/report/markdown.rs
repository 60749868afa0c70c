//! The report as Markdown.

use std::fmt::Write;

use super::{Report, Row, Table, Target, Unit};
use crate::statistics::Spread;

/// The figures of the first page: the measure, and what it means.
const HEADLINES: [(&str, &str); 6] = [
    (
        "latency of the 2-shard transaction at 1 ms: pg_fdw_xacts, against postgres_fdw, parallel_commit",
        "time of a transaction on two shards that are 1 ms away, against `postgres_fdw`, which is not atomic",
    ),
    (
        "throughput, 16 clients: pg_fdw_xacts, against postgres_fdw, parallel_commit",
        "such transactions per second with 16 clients and no delay, against the same: the price of atomic commit",
    ),
    (
        "consistent reads, a sum over 2 servers at 1 ms: time with on against off",
        "time of a sum over two shards with one snapshot for both, against without",
    ),
    (
        "INSERT … SELECT, 100000 rows: time against COPY straight into the shard",
        "time of `INSERT … SELECT` into a shard, against `COPY` of the same rows straight into it",
    ),
    (
        "processor time, SELECT by key: pg_fdw_xacts, against postgres_fdw",
        "processor time of a SELECT by key, all servers together, against `postgres_fdw`",
    ),
    (
        "local transactions: instructions of the server with the library loaded, against without",
        "instructions of a transaction that uses no foreign table, with the extension loaded, against without",
    ),
];

/// What follows for a user; the same in every report.
const CHOOSING: &str = include_str!("choosing.md");

/// The whole text: what a user wants to know first, then the tables, then every measure.
pub fn render(report: &Report) -> String {
    let mut text = String::from("# Benchmark of pg_fdw_xacts\n\n");
    text += "Made by `cargo xtask bench`, which measures everything again. Figures are ratios between contenders that \
             alternate on the same servers: the median of the rounds, with the smallest and the largest in brackets.\n\n";
    if report.quick {
        text += "**A quick run** (`--quick`): short slices, few rounds.\n\n";
    }
    text += &headlines(report);
    let mut plots = report.tables.iter().filter(|table| table.plot.is_some());
    text.extend(plots.by_ref().take(2).map(plot));
    text += CHOOSING;
    text += "\n## How it was measured\n\n\
             The transaction, where nothing else is said, is `BEGIN`, a single-row `INSERT` on each shard, `COMMIT`, each \
             sent when the one before is answered. Servers are durable (`fsync`, `synchronous_commit`). Without a \
             delay the contenders reach the shards directly. The application sends `BEGIN` and `INSERT` in one message, \
             and each of its two phases to all shards at once; it keeps no record of its decision, so a crash between \
             the phases leaves what nobody can settle.\n\n";
    for (name, value) in report.machine.lines() {
        let _ = writeln!(text, "* {name}: {value}");
    }
    for table in &report.tables {
        text += &figures(table);
    }
    text.extend(plots.map(plot));
    text += "\n## Appendix: all measures, with the project's own targets\n\n\
             | measure | figure | target | reached | remark |\n|---|---|---|---|---|\n";
    for row in &report.rows {
        text += &line(row);
    }
    text
}

fn headlines(report: &Report) -> String {
    let found = HEADLINES.iter().filter_map(|(measure, meaning)| {
        let row = report.rows.iter().find(|row| row.measure == *measure)?;
        let figure = spread(&row.figure, |value| number(value, row.unit));
        Some(format!("| **{figure}** | {meaning} |\n"))
    });
    let lines: String = found.collect();
    if lines.is_empty() { lines } else { format!("| | |\n|---|---|\n{lines}\n") }
}

fn plot(table: &Table) -> String {
    table.plot.iter().map(|file| format!("![{}]({file})\n\n", table.title)).collect()
}

fn line(row: &Row) -> String {
    let (target, reached) = match row.target {
        None => (String::new(), ""),
        Some(target) => {
            let reached = if target.reached(row.figure.median) { "yes" } else { "**no**" };
            let text = match target {
                Target::AtMost(bound) => format!("at most {}", number(bound, row.unit)),
                Target::AtLeast(bound) => format!("at least {}", number(bound, row.unit)),
            };
            (text, reached)
        }
    };
    let figure = spread(&row.figure, |value| number(value, row.unit));
    format!("| {} | {figure} | {target} | {reached} | {} |\n", row.measure, row.remark)
}

fn figures(table: &Table) -> String {
    let mut text = format!("\n## {}\n\n", table.title);
    let _ = writeln!(text, "| {} | {} |", table.condition, table.columns.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(table.columns.len()));
    for (name, values) in &table.lines {
        let values: Vec<String> = values
            .iter()
            .map(|value| value.map_or(String::from("–"), |value| spread(&value, significant)))
            .collect();
        let _ = writeln!(text, "| {name} | {} |", values.join(" | "));
    }
    text
}

/// "1.20 (1.10 to 1.31)"; without brackets where all rounds gave the same.
pub(super) fn spread(spread: &Spread, show: impl Fn(f64) -> String) -> String {
    let [median, min, max] = [spread.median, spread.min, spread.max].map(&show);
    if min == max { median } else { format!("{median} ({min} to {max})") }
}

fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => format!("{value}"),
        Unit::Ratio => format!("{value:.2}"),
        Unit::Bytes => format!("{value:.0} B"),
        Unit::Megabytes => format!("{value:.1} MB"),
    }
}

/// `value` with three significant digits, or all those before the point if there are more.
pub(super) fn significant(value: f64) -> String {
    let before_point = value.abs().max(1e-9).log10().floor() as i32 + 1;
    format!("{value:.*}", usize::try_from(3 - before_point).unwrap_or(0).min(3))
}

#[cfg(test)]
mod tests {
    use super::{figures, line, significant};
    use crate::report::{Row, Table, Target, Unit};
    use crate::statistics::Spread;

    fn row(median: f64, target: Option<Target>) -> String {
        line(&Row {
            measure: "m".into(),
            figure: Spread { median, min: 0.5, max: 2.0 },
            unit: Unit::Ratio,
            target,
            remark: "r".into(),
        })
    }

    #[test]
    fn a_row_tells_figure_target_and_verdict() {
        let target = Some(Target::AtLeast(0.8));
        assert_eq!(row(0.9, target), "| m | 0.90 (0.50 to 2.00) | at least 0.80 | yes | r |\n");
        assert_eq!(row(0.79, target), "| m | 0.79 (0.50 to 2.00) | at least 0.80 | **no** | r |\n");
        assert_eq!(row(1.0, None), "| m | 1.00 (0.50 to 2.00) |  |  | r |\n");
    }

    #[test]
    fn a_bound_itself_is_reached() {
        assert!(Target::AtMost(4.0).reached(4.0) && !Target::AtMost(4.0).reached(5.0));
        assert!(Target::AtLeast(0.8).reached(0.8) && !Target::AtLeast(0.8).reached(0.7));
    }

    #[test]
    fn a_table_has_a_dash_where_nothing_was_measured() {
        let text = figures(&Table {
            title: "Time in ms".into(),
            condition: "shards".into(),
            columns: vec!["1".into(), "2".into()],
            lines: vec![("a".into(), vec![Some(Spread::single(12.345)), None])],
            plot: Some("a.svg".into()),
        });
        assert_eq!(
            text,
            "\n## Time in ms\n\n| shards | 1 | 2 |\n|---|---|---|\n| a | 12.3 | – |\n"
        );
    }

    #[test]
    fn figures_have_three_digits_that_mean_something() {
        let shown: Vec<String> =
            [0.0, 0.0123, 0.5, 9.876, 98.76, 12345.6].into_iter().map(significant).collect();
        assert_eq!(shown, ["0.000", "0.012", "0.500", "9.88", "98.8", "12346"]);
    }
}
