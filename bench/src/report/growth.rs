//! `growth.md`: the curves, and of each figure whether it grows, and why.

use std::fmt::Write;

use super::markdown::{significant, spread};
use super::origin;
use crate::curve::{Curve, Verdict};
use crate::document::Outcome;

/// The whole text.
pub fn render(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "# How pg_fdw_xacts grows\n\n\
         Made by `cargo xtask bench --growth`, which measures everything again. Each table has what grows in its \
         head; a figure is the median of a few rounds, with the smallest and the largest in brackets. Plots show \
         each figure over its first one, so that what does not grow is a horizontal line. The servers do not wait \
         for their disks (`fsync = off`), so that what the programs do is seen. Memory is what a process does not \
         share with others.\n\n",
    );
    text += &origin::warning(outcomes);
    for (_, kept) in outcomes {
        text.extend(kept.iter().flat_map(|kept| &kept.report.curves).map(section));
    }
    text + &origin::section(outcomes)
}

fn section(curve: &Curve) -> String {
    let points: Vec<String> = curve.points.iter().map(usize::to_string).collect();
    let mut text = format!("\n## {}\n\n{}\n\n", capitalised(&curve.what), curve.how);
    let _ = writeln!(text, "![{}]({})\n", curve.what, curve.plot());
    let _ = writeln!(text, "| | {} | |", points.join(" | "));
    let _ = writeln!(text, "|---|{}---|", "---|".repeat(points.len()));
    for line in &curve.lines {
        let values: Vec<String> = line
            .values
            .iter()
            .map(|value| value.map_or(String::from("–"), |value| spread(&value, significant)))
            .collect();
        let verdict = line.verdict(&curve.points).map(verdict).unwrap_or_default();
        let _ = writeln!(text, "| {} | {} | {verdict} |", line.label, values.join(" | "));
    }
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in &curve.lines {
        let Some(Verdict::Changes { factor, .. }) = line.verdict(&curve.points) else { continue };
        let (label, reason) = (line.label.as_str(), line.reason.as_str());
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, labels)) => labels.push(label),
            // What has become less needs no reason.
            None if reason.is_empty() && factor < 1.0 => {}
            None => reasons.push((reason, vec![label])),
        }
    }
    if !reasons.is_empty() {
        text += "\nWhat figures depend on that are not flat:\n\n";
    }
    for (reason, labels) in reasons {
        let reason = if reason.is_empty() { "**not explained**" } else { reason };
        let _ = writeln!(text, "* {}: {reason}", labels.join("; "));
    }
    text
}

/// "flat", or "× 3.2 from 10 on".
fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Flat => "flat".to_owned(),
        Verdict::Changes { factor, from } => {
            format!("× {} from {from} on", significant(factor))
        }
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::section;
    use crate::curve::{Curve, Figure};

    #[test]
    fn what_grows_is_told_with_its_reason_and_what_does_not_as_flat() {
        let same = Figure { label: "same", reason: "Never shown." };
        let more = Figure { label: "more", reason: "It has to." };
        let unknown = Figure { label: "unknown", reason: "" };
        let mut curve = Curve::new("n", "things", "How.");
        for (point, value) in [(1, 1.0), (10, 5.0)] {
            curve.point(point);
            curve.note(same, &[1.0]);
            curve.note(more, &[value]);
            curve.note(unknown, &[value]);
        }
        assert_eq!(
            section(&curve),
            "\n## Things\n\nHow.\n\n![things](growth-n.svg)\n\n\
             | | 1 | 10 | |\n|---|---|---|---|\n\
             | same | 1 | 1 | flat |\n\
             | more | 1 | 5 | × 5 from 1 on |\n\
             | unknown | 1 | 5 | × 5 from 1 on |\n\n\
             What figures depend on that are not flat:\n\n\
             * more: It has to.\n* unknown: **not explained**\n"
        );
    }
}
