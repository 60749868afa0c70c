//! The reference of the book against a running server: all that there is, and nothing else, with
//! the defaults, units, ranges, signatures and columns that it has.

use std::collections::BTreeSet;

use pg_test::{Cluster, Fleet};
use postgres::Client;

use crate::docs::page;
use crate::support::Outcome;

const PAGE: &str = "reference.md";

/// Every line in `expected` must stand in the section of the page with that heading.
fn assert_documented(page: &str, heading: &str, expected: &[String]) {
    let marker = format!("### `{heading}`\n");
    let Some((_, section)) = page.split_once(&marker) else {
        panic!("{PAGE} has no heading\n{marker}with\n{}", expected.join("\n"))
    };
    let section = section.split("\n#").next().unwrap_or(section);
    for line in expected {
        assert!(
            section.lines().any(|found| found.starts_with(line.as_str())),
            "{PAGE}: under `{heading}` there must be the line\n{line}\nbut there is\n{section}"
        );
    }
}

/// The names in the headings under a title.
fn headings(page: &str, title: &str) -> BTreeSet<String> {
    let (_, part) = page.split_once(&format!("\n## {title}\n")).expect("the page has this part");
    let part = part.split("\n## ").next().unwrap_or(part);
    part.lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .map(str::to_owned)
        .collect()
}

/// A number in milliseconds or seconds as PostgreSQL would show it; without a unit as it is.
fn shown(value: &str, unit: Option<&str>) -> String {
    let (Ok(number), Some(unit)) = (value.parse::<i64>(), unit) else { return value.to_owned() };
    let factor = if unit == "ms" { 1 } else { 1000 };
    let steps = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];
    let milliseconds = number * factor;
    let fitting = steps.iter().find(|(_, size)| milliseconds % size == 0 && milliseconds >= *size);
    fitting
        .map_or_else(|| value.to_owned(), |(name, size)| format!("{}{name}", milliseconds / size))
}

fn setting_line(row: &postgres::Row) -> String {
    let unit: Option<&str> = row.get("unit");
    let default = shown(row.get("boot_val"), unit);
    let (low, high): (Option<&str>, Option<&str>) = (row.get("min_val"), row.get("max_val"));
    let choices: Option<Vec<String>> = row.get("enumvals");
    let range = match (choices, low, high) {
        (Some(choices), ..) => format!("; one of `{}`", choices.join("`, `")),
        (_, Some(low), Some(high)) if high == i32::MAX.to_string() => {
            format!("; at least `{}`", shown(low, unit))
        }
        (_, Some(low), Some(high)) => {
            format!("; `{}` to `{}`", shown(low, unit), shown(high, unit))
        }
        _ => String::new(),
    };
    let context = match row.get("context") {
        "user" => "any session may set it",
        "superuser" => "superusers may set it",
        "sighup" => "reload",
        "postmaster" => "restart",
        other => panic!("a context that the page has no word for: {other}"),
    };
    format!("Default `{default}`{range}; {context}.")
}

#[test]
fn every_setting_is_in_the_reference_as_it_is() -> Outcome {
    let page = page::text(PAGE)?;
    let fleet = Fleet::start()?;
    let rows = fleet.session()?.query(
        "SELECT name, unit, boot_val, min_val, max_val, enumvals, context FROM pg_settings
         WHERE name LIKE 'pg_fdw_xacts.%'",
        &[],
    )?;
    let names: BTreeSet<String> = rows.iter().map(|row| row.get("name")).collect();
    for row in &rows {
        assert_documented(&page, row.get("name"), &[setting_line(row)]);
    }
    assert_eq!(headings(&page, "Settings"), names);
    Ok(())
}

/// Name and expected lines of each object of the extension that `sql` finds.
fn objects(session: &mut Client, sql: &str) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let rows = session.query(sql, &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Condition for a catalog's row to belong to the extension.
fn belongs(catalog: &str) -> String {
    format!(
        "EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalog}'::regclass AND d.objid = o.oid
             AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
             AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fdw_xacts'))"
    )
}

#[test]
fn every_function_is_in_the_reference_as_it_is() -> Outcome {
    let page = page::text(PAGE)?;
    let fleet = Fleet::start()?;
    let found = objects(
        &mut fleet.session()?,
        &format!(
            "SELECT proname::text,
                 ARRAY[format('`%s(%s) returns %s`', proname, pg_get_function_arguments(oid),
                           pg_get_function_result(oid)),
                       CASE WHEN has_function_privilege('public', oid, 'EXECUTE') THEN 'For everyone.'
                           ELSE 'For superusers, and roles that they grant it to.' END]
             FROM pg_proc o WHERE {}",
            belongs("pg_proc")
        ),
    )?;
    for (name, lines) in &found {
        assert_documented(&page, name, lines);
    }
    let names: BTreeSet<String> = found.into_iter().map(|(name, _)| name).collect();
    assert_eq!(headings(&page, "Functions"), names);
    Ok(())
}

#[test]
fn every_view_and_table_is_in_the_reference_with_its_columns() -> Outcome {
    let page = page::text(PAGE)?;
    let fleet = Fleet::start()?;
    for (title, kind) in [("Views", 'v'), ("Tables", 'r')] {
        let found = objects(
            &mut fleet.session()?,
            &format!(
                "SELECT oid::regclass::text,
                     (SELECT array_agg(format('| `%s` | `%s` |', attname, format_type(atttypid, atttypmod))
                          ORDER BY attnum)
                      FROM pg_attribute WHERE attrelid = oid AND attnum > 0)
                 FROM pg_class o WHERE relkind = '{kind}' AND {}",
                belongs("pg_class")
            ),
        )?;
        for (name, lines) in &found {
            assert_documented(&page, name, lines);
        }
        let names: BTreeSet<String> = found.into_iter().map(|(name, _)| name).collect();
        assert_eq!(headings(&page, title), names, "{title}");
    }
    Ok(())
}

#[test]
fn the_server_options_of_the_reference_are_of_our_own() -> Outcome {
    let page = page::text(PAGE)?;
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("CREATE SERVER stock FOREIGN DATA WRAPPER postgres_fdw")?;
    for option in headings(&page, "Server options") {
        let value = if option == "remote_isolation" { "match" } else { "off" };
        let add = |server| format!("ALTER SERVER {server} OPTIONS (ADD {option} '{value}')");
        session.batch_execute(&add("shard1"))?;
        assert!(session.batch_execute(&add("stock")).is_err(), "{option} is postgres_fdw's");
    }
    Ok(())
}

/// The words in a text that begin like something of the extension.
fn mentioned(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    text.split(|c: char| !is_part(c))
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| word.starts_with("pg_fdw_xacts.") || word.starts_with("pg_fdw_xacts_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn nothing_is_mentioned_anywhere_that_does_not_exist() -> Outcome {
    let fleet = Fleet::start()?;
    let exists = known_names(&fleet.coordinator)?;
    let mut pages = vec![(
        "README.md".to_owned(),
        std::fs::read_to_string(page::directory().join("../../README.md"))?,
    )];
    for entry in std::fs::read_dir(page::directory())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            pages.push((name.clone(), page::text(&name)?));
        }
    }
    for (page, text) in pages {
        for word in mentioned(&text) {
            assert!(exists.contains(&word), "{page} mentions {word}");
        }
    }
    Ok(())
}

fn known_names(coordinator: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let rows = coordinator.client()?.query(
        "SELECT name FROM pg_settings WHERE name LIKE 'pg_fdw_xacts.%'
         UNION ALL SELECT proname::text FROM pg_proc WHERE proname LIKE 'pg_fdw_xacts%'
         UNION ALL SELECT relname::text FROM pg_class WHERE relname LIKE 'pg_fdw_xacts%' AND relkind = 'v'",
        &[],
    )?;
    let files = ["pg_fdw_xacts.control", "pg_fdw_xacts.sql"].map(str::to_owned);
    Ok(rows.iter().map(|row| row.get(0)).chain(files).collect())
}
