//! The report as Markdown.

use std::fmt::Write;

use super::{Headline, Report, Row, Table, Target, Unit, origin};
use crate::document::Outcome;
use crate::statistics::Spread;

/// The figures of the first page, and what they mean.
const HEADLINES: [(Headline, &str); 5] = [
    (
        Headline::Latency,
        "time of a transaction on two shards that are 1 ms away, against `postgres_fdw` with `parallel_commit`, which \
         is not atomic",
    ),
    (
        Headline::Throughput,
        "such transactions per second with 16 clients and no delay, against the same: only processors and disks count",
    ),
    (
        Headline::Bulk,
        "time of `INSERT … SELECT` into a shard, against `COPY` of the same rows straight into it",
    ),
    (
        Headline::Reads,
        "time of a sum over two shards that are 1 ms away with one snapshot for both (`consistent_reads`), against \
         without",
    ),
    (
        Headline::Local,
        "instructions of a transaction that uses no foreign table, with the extension loaded, against without",
    ),
];

/// What follows for a user; it claims nothing that figures might not show.
const CHOOSING: &str = include_str!("choosing.md");

/// The whole text: what a user wants to know first, then the tables, then every measure.
pub fn render(outcomes: &[Outcome]) -> String {
    let reports = || outcomes.iter().filter_map(|(_, kept)| Some(&kept.as_ref()?.report));
    let mut text = String::from(
        "# Benchmark of pg_fdw_xacts\n\n\
         Made by `cargo xtask bench`, which measures everything again. The figures of this page are ratios between contenders that \
         alternate on the same servers: the median of the rounds, with the smallest and the largest in brackets. Below \
         1 is less time, or fewer transactions per second.\n\n",
    );
    text += &origin::warning(outcomes);
    text += &headlines(reports().collect::<Vec<_>>().as_slice());
    let mut plots =
        reports().flat_map(|report| &report.tables).filter(|table| table.plot.is_some());
    text.extend(plots.by_ref().take(2).map(plot));
    text += CHOOSING;
    text += "\n## How it was measured\n\n\
             A coordinator, its shards and the clients share one machine. The transaction, where nothing else is said, \
             is `BEGIN`, a single-row `INSERT` on each shard, `COMMIT`, each sent when the one before is answered. \
             `fsync` and `synchronous_commit` are on where nothing else is said. Without a delay the contenders reach \
             the shards directly. The application sends `BEGIN` and `INSERT` in one message, and each of its two phases \
             to all shards at once; it keeps no record of its decision, so a crash between the phases leaves what \
             nobody can settle.\n";
    text += &origin::section(outcomes);
    for table in reports().flat_map(|report| &report.tables) {
        text += &figures(table);
    }
    text += "\n";
    text.extend(plots.map(plot));
    text += "## Appendix: all measures, with the project's own targets\n\n\
             | measure | figure | target | reached | remark |\n|---|---|---|---|---|\n";
    text.extend(reports().flat_map(|report| &report.rows).map(line));
    text
}

fn headlines(reports: &[&Report]) -> String {
    let mut text = String::from("| ratio | of what |\n|---|---|\n");
    for (headline, meaning) in HEADLINES {
        let mut known = reports.iter().flat_map(|report| &report.headlines);
        let figure = known.find(|(other, _)| *other == headline);
        let figure = figure.map(|(_, figure)| spread(figure, |value| number(value, Unit::Ratio)));
        let _ = writeln!(text, "| **{}** | {meaning} |", figure.as_deref().unwrap_or("–"));
    }
    text + "\n"
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

/// `value` with three significant digits, or all those before the point if there are more; a count
/// as it is.
pub(super) fn significant(value: f64) -> String {
    if value.fract() == 0.0 {
        return format!("{value}");
    }
    let before_point = value.abs().max(1e-9).log10().floor() as i32 + 1;
    format!("{value:.*}", usize::try_from(3 - before_point).unwrap_or(0).min(3))
}

#[cfg(test)]
mod tests {
    use super::{figures, headlines, line, significant};
    use crate::report::{Headline, Report, Row, Table, Target, Unit};
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
        assert_eq!(shown, ["0", "0.012", "0.500", "9.88", "98.8", "12346"]);
    }

    #[test]
    fn a_figure_of_the_first_page_has_a_dash_if_its_part_is_missing() {
        let mut report = Report::default();
        report.headline(Headline::Bulk, Some(Spread { median: 1.0, min: 0.9, max: 1.2 }));
        report.headline(Headline::Reads, None);
        let text = headlines(&[&Report::default(), &report]);
        for part in ["| **1.00 (0.90 to 1.20)** | time of `INSERT", "| **–** | time of a sum"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
