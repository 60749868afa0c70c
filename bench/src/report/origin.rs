//! Where the figures of a document come from: when, where and at which commit each part was
//! measured.

use std::fmt::Write;

use crate::document::Outcome;
use crate::kept::Kept;
use crate::machine::Machine;

/// What has to be said before the first figure; empty if all parts are there as they should be.
pub fn warning(outcomes: &[Outcome]) -> String {
    let names = |is: fn(&Option<Kept>) -> bool| {
        let chosen = outcomes.iter().filter(|(_, kept)| is(kept)).map(|(name, _)| *name);
        chosen.collect::<Vec<_>>().join(", ")
    };
    let mut text = String::new();
    let missing = names(Option::is_none);
    if !missing.is_empty() {
        let _ = writeln!(text, "**Not measured, and left out:** {missing}.\n");
    }
    let quick = names(|kept| kept.as_ref().is_some_and(|kept| kept.quick));
    if !quick.is_empty() {
        let _ =
            writeln!(text, "**Measured with short slices and few rounds (`--quick`):** {quick}.\n");
    }
    text
}

/// The machine, and a line for each part.
pub fn section(outcomes: &[Outcome]) -> String {
    let mut text = String::from("\n## When and where it was measured\n");
    for (name, value) in machines(outcomes) {
        let _ = write!(text, "\n{name}{value}");
    }
    text += "\nEach part follows the one before, whose load its load averages still show. \
             `cargo xtask bench --only NAME` measures a part again.\n\n\
             | part | began (UTC) | commit | load averages then | a write of 8 kB with fdatasync | took |\n\
             |---|---|---|---|---|---|\n";
    for (name, kept) in outcomes {
        let Some(kept) = kept else {
            let _ = writeln!(text, "| {name} | **not measured** | | | | |");
            continue;
        };
        let Kept { commit, circumstances: then, seconds, .. } = kept;
        let _ = writeln!(
            text,
            "| {name} | {} | {commit} | {} | {:.2} ms | {seconds} s |",
            then.date, then.load, then.sync
        );
    }
    text
}

/// Each machine that something was measured on, as a list, and before it which parts that were if
/// there are several machines.
fn machines(outcomes: &[Outcome]) -> Vec<(String, String)> {
    let known =
        || outcomes.iter().filter_map(|(name, kept)| Some((*name, &kept.as_ref()?.machine)));
    let mut machines: Vec<&Machine> = Vec::new();
    for (_, machine) in known() {
        if !machines.contains(&machine) {
            machines.push(machine);
        }
    }
    let is_one = machines.len() == 1;
    let list = |machine: &Machine| {
        let parts = known().filter(|(_, other)| **other == *machine).map(|(name, _)| name);
        let parts = parts.collect::<Vec<_>>().join(", ");
        let heading = if is_one { String::new() } else { format!("Parts {parts}:\n\n") };
        let lines = machine.lines();
        (heading, lines.iter().map(|(name, value)| format!("* {name}: {value}\n")).collect())
    };
    machines.into_iter().map(list).collect()
}

#[cfg(test)]
mod tests {
    use super::{machines, section, warning};
    use crate::kept::tests::kept;
    use crate::report::Report;

    #[test]
    fn a_part_tells_when_it_was_measured_or_that_it_was_not() {
        let outcomes = [("a", Some(kept("k", Report::default()))), ("b", None)];
        let text = section(&outcomes);
        for part in [
            "| a | 2026-01-02 03:04 | abc | 0.1, 0.2, 0.3 | 0.25 ms | 7 s |\n",
            "| b | **not measured** | | | | |\n",
            "\n\n* processors: 2 × one\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(warning(&outcomes), "**Not measured, and left out:** b.\n\n");
        assert_eq!(warning(&outcomes[..1]), "");
    }

    #[test]
    fn parts_of_different_machines_are_told_apart() {
        let outcomes = ["k", "l", "k"].map(|kernel| Some(kept(kernel, Report::default())));
        let [a, b, c] = outcomes;
        let found = machines(&[("a", a), ("b", b), ("c", c), ("d", None)]);
        let headings: Vec<_> = found.iter().map(|(heading, _)| heading.as_str()).collect();
        assert_eq!(headings, ["Parts a, c:\n\n", "Parts b:\n\n"]);
    }
}
