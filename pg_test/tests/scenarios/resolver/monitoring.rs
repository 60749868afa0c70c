//! What an operator watches: the files in `monitoring/` against a running coordinator with
//! something in doubt, and what `pg_stat_activity` shows of the workers and of waiting sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use pg_test::dashboard::{self, Panel};
use pg_test::log::Mark;
use pg_test::oracle::{assert_settled, one, wait_for_attempts};
use pg_test::{DEADLINE, Fault, Fleet, Point, StopMode, wait_until};
use postgres::{Client, SimpleQueryMessage};
use yaml_rust2::{Yaml, YamlLoader};

use crate::support::{Outcome, begin_everywhere, in_background};

/// An entry of postgres_exporter's query file.
pub struct Query {
    pub query: String,
    master: bool,
    pub metrics: Vec<Metric>,
}

pub struct Metric {
    pub name: String,
    pub usage: String,
    description: String,
}

/// An alert of Prometheus.
struct Rule {
    alert: String,
    expr: String,
    severity: String,
    text: String,
}

fn read(file: &str) -> anyhow::Result<Yaml> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../monitoring").join(file);
    let mut documents = YamlLoader::load_from_str(&std::fs::read_to_string(path)?)?;
    assert_eq!(documents.len(), 1, "{file}");
    Ok(documents.remove(0))
}

fn entries(of: &Yaml) -> impl Iterator<Item = (String, &Yaml)> {
    of.as_hash().expect("a mapping").iter().map(|(key, value)| (text(key), value))
}

fn items(of: &Yaml) -> impl Iterator<Item = &Yaml> {
    of.as_vec().expect("a list").iter()
}

#[track_caller]
fn text(of: &Yaml) -> String {
    of.as_str().unwrap_or_else(|| panic!("{of:?} is no text")).to_owned()
}

/// The query file, by the prefix of its metrics.
pub fn queries() -> anyhow::Result<BTreeMap<String, Query>> {
    let file = read("postgres_exporter.yaml")?;
    let metric = |(name, metric): (String, &Yaml)| Metric {
        name,
        usage: text(&metric["usage"]),
        description: text(&metric["description"]),
    };
    let query = |entry: &Yaml| Query {
        query: text(&entry["query"]),
        master: entry["master"].as_bool().unwrap_or_default(),
        metrics: items(&entry["metrics"]).flat_map(entries).map(metric).collect(),
    };
    Ok(entries(&file).map(|(prefix, entry)| (prefix, query(entry))).collect())
}

fn rules() -> anyhow::Result<Vec<Rule>> {
    let file = read("prometheus_rules.yaml")?;
    Ok(items(&file["groups"])
        .flat_map(|group| items(&group["rules"]))
        .map(|rule| Rule {
            alert: text(&rule["alert"]),
            expr: text(&rule["expr"]),
            severity: text(&rule["labels"]["severity"]),
            text: text(&rule["annotations"]["summary"])
                + &text(&rule["annotations"]["description"]),
        })
        .collect())
}

/// The metrics that the query file declares, with their labels.
fn declared() -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut declared = BTreeMap::new();
    for (prefix, query) in queries()? {
        let (labels, metrics): (Vec<Metric>, Vec<Metric>) =
            query.metrics.into_iter().partition(|metric| metric.usage == "LABEL");
        let labels: Vec<String> = labels.into_iter().map(|label| label.name).collect();
        for metric in metrics {
            declared.insert(format!("{prefix}_{}", metric.name), labels.clone());
        }
    }
    Ok(declared)
}

/// Rows of a query as text, by column.
pub fn rows(
    session: &mut Client,
    query: &str,
) -> anyhow::Result<Vec<BTreeMap<String, Option<String>>>> {
    let mut rows = Vec::new();
    for message in session.simple_query(query)? {
        if let SimpleQueryMessage::Row(row) = message {
            let columns = row.columns().iter().enumerate();
            rows.push(
                columns
                    .map(|(n, column)| (column.name().to_owned(), row.get(n).map(str::to_owned)))
                    .collect(),
            );
        }
    }
    Ok(rows)
}

/// The values of all metrics, by metric and label; each query has the columns that the file says.
fn values(session: &mut Client) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut values = BTreeMap::new();
    for (prefix, query) in queries()? {
        assert!(query.master, "{prefix} would run on standbys");
        let found = rows(session, &query.query)?;
        assert!(!found.is_empty(), "{prefix} has no rows");
        let names: BTreeSet<&String> = query.metrics.iter().map(|metric| &metric.name).collect();
        for row in &found {
            assert_eq!(row.keys().collect::<BTreeSet<_>>(), names, "{prefix}");
            let label = query
                .metrics
                .iter()
                .find(|metric| metric.usage == "LABEL" && metric.name != "datname")
                .map(|metric| row[&metric.name].clone().expect("a label is not NULL"))
                .unwrap_or_default();
            for Metric { name, usage, description } in &query.metrics {
                assert!(!description.is_empty(), "{prefix}_{name}");
                if usage == "LABEL" {
                    continue;
                }
                assert!(["COUNTER", "GAUGE"].contains(&usage.as_str()), "{prefix}_{name}: {usage}");
                let value = row[name].as_deref().and_then(|v| v.parse::<f64>().ok());
                let value = value.unwrap_or_else(|| panic!("{prefix}_{name}: {row:?}"));
                values.insert(format!("{prefix}_{name} {label}"), value);
            }
        }
    }
    Ok(values)
}

#[test]
fn each_query_of_the_exporter_gives_the_metrics_that_it_declares() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    session.batch_execute("CREATE ROLE watcher LOGIN IN ROLE pg_monitor")?;
    let mut watcher = fleet.coordinator.client_for("postgres", "watcher")?;
    let values = values(&mut watcher)?;
    let expected = [
        ("pg_fdw_xacts_server_in_doubt shard1", 1.0),
        ("pg_fdw_xacts_server_in_doubt shard2", 1.0),
        ("pg_fdw_xacts_server_prepared_total shard1", 1.0),
        ("pg_fdw_xacts_server_heuristic_total shard1", 0.0),
        ("pg_fdw_xacts_transactions_count prepared", 2.0),
        ("pg_fdw_xacts_transactions_count committing", 0.0),
        ("pg_fdw_xacts_slots_used ", 2.0),
        ("pg_fdw_xacts_slots_max ", 1000.0),
        ("pg_fdw_xacts_worker_resolver_running ", 1.0),
        ("pg_fdw_xacts_worker_launcher_running ", 1.0),
    ];
    for (name, value) in expected {
        assert_eq!(values.get(name), Some(&value), "{name} in {values:#?}");
    }
    assert!(values["pg_fdw_xacts_server_oldest_in_doubt_seconds shard1"] > 0.0);
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    Ok(())
}

/// The words of an expression that name metrics: all but those of the language, and what is in
/// braces or behind "by". Durations begin with a digit.
pub fn metrics(expr: &str) -> Vec<String> {
    const WORDS: [&str; 10] =
        ["increase", "rate", "sum", "max", "time", "by", "or", "and", "unless", "offset"];
    let mut words = Vec::new();
    for part in expr.split('{').flat_map(|part| part.rsplit('}').next()) {
        let part = match part.split_once(" by (") {
            Some((before, after)) => {
                before.to_owned() + after.split_once(')').map_or("", |(_, after)| after)
            }
            None => part.to_owned(),
        };
        words.extend(
            part.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '$')
                .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
                .filter(|word| !WORDS.contains(word))
                .map(str::to_owned),
        );
    }
    words
}

#[test]
fn alert_rules_speak_of_metrics_and_labels_that_exist() -> Outcome {
    let declared = declared()?;
    let mut names = Vec::new();
    for rule in rules()? {
        let mut of_rule = Vec::new();
        for word in metrics(&rule.expr) {
            let labels = declared.get(&word);
            of_rule.push(labels.unwrap_or_else(|| panic!("{}: {word}", rule.alert)));
        }
        assert!(!of_rule.is_empty(), "{} looks at nothing", rule.alert);
        assert!(["warning", "critical"].contains(&rule.severity.as_str()), "{}", rule.alert);
        for label in rule.text.split("$labels.").skip(1) {
            let label: String =
                label.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            assert!(
                of_rule.iter().all(|labels| labels.contains(&label)),
                "{}: {label}",
                rule.alert
            );
        }
        names.push(rule.alert);
    }
    for name in ["InDoubt", "ManyInDoubt", "HeuristicOutcome", "ResolverNotRunning"] {
        assert!(names.contains(&format!("PgFdwXacts{name}")), "{names:?}");
    }
    Ok(())
}

/// Each panel of the dashboard shows metrics and labels that the exporter has, and each metric is
/// on a panel.
#[test]
fn the_dashboard_shows_what_the_exporter_gives() -> Outcome {
    let declared = declared()?;
    let mut shown = BTreeSet::new();
    for Panel { title, description, targets, .. } in dashboard::panels()? {
        assert!(!description.is_empty(), "{title}");
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expr = &target.expr;
            let metrics = metrics(expr);
            assert!(!metrics.is_empty(), "{title}: {expr}");
            for metric in metrics {
                let labels = declared.get(&metric).unwrap_or_else(|| panic!("{title}: {metric}"));
                let matched = expr.split(['{', ',']).filter_map(|part| part.split_once("=~"));
                for label in matched.map(|(label, _)| label).chain(target.labels()) {
                    assert!(labels.iter().any(|l| l == label), "{title}: {metric}: {label}");
                }
                shown.insert(metric);
            }
        }
    }
    assert_eq!(shown, declared.into_keys().collect());
    Ok(())
}

/// A column of `pg_stat_activity` for the processes of a type.
fn activity(session: &mut Client, kind: &str, column: &str) -> anyhow::Result<String> {
    one(
        session,
        &format!(
            "SELECT coalesce(string_agg({column}, ' '), '') FROM pg_stat_activity WHERE backend_type = '{kind}'"
        ),
    )
}

#[test]
fn workers_are_shown_with_a_name_and_with_what_they_do() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    let mut witness = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("COMMIT")?;
    let mut shows = |kind: &str, column: &str, expected: &str| {
        let what = format!("{column} of the {kind} is '{expected}'");
        wait_until(&what, DEADLINE, || Ok(activity(&mut witness, kind, column)? == expected))
    };
    let (launcher, resolver) = ("pg_fdw_xacts launcher", "pg_fdw_xacts resolver");
    for kind in [launcher, resolver] {
        shows(kind, "application_name", kind)?;
        shows(kind, "state", "idle")?;
    }
    shows(launcher, "query", "1 resolvers started")?;
    shows(resolver, "query", "waiting; 0 of 2 participants to settle")?;
    // The session gives up waiting, and the resolver waits in its place.
    // Only of phase two: that would be phase one's limit as well.
    session.batch_execute(
        "SET pg_fdw_xacts.commit_timeout = '200ms'; SET pg_fdw_xacts.prepare_timeout = '60s'",
    )?;
    begin_everywhere(&mut session, 2)?;
    let first = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let commit = in_background(session, "COMMIT");
    first.wait()?;
    let second = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    commit.join().1?;
    second.wait()?;
    shows(resolver, "query", "settling 1 transaction, on server \"shard1\"")?;
    shows(resolver, "state", "active")?;
    first.release();
    second.release();
    assert_settled(&fleet);
    shows(resolver, "state", "idle")?;
    Ok(())
}

#[test]
fn a_waiting_session_shows_what_it_waits_for() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut witness = fleet.session()?;
    let version: i32 = one(&mut witness, "SELECT current_setting('server_version_num')::int")?;
    let mut session = fleet.session()?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    let mut shows = |expected: &str| {
        let expected = if version >= 170_000 { expected } else { "Extension" };
        wait_until(&format!("the session shows {expected}"), DEADLINE, || {
            let query = format!(
                "SELECT coalesce(wait_event_type || ' ' || wait_event, '') FROM pg_stat_activity WHERE pid = {pid}"
            );
            Ok(one::<String>(&mut witness, &query)? == format!("Extension {expected}"))
        })
    };
    begin_everywhere(&mut session, 1)?;
    for (sql, statement, expected) in [
        ("SELECT * FROM ft1", "DECLARE", "PgFdwXactsResult"),
        ("COMMIT", "PREPARE TRANSACTION", "PgFdwXactsPrepare"),
        ("BEGIN; INSERT INTO ft1 VALUES (2); COMMIT", "COMMIT", "PgFdwXactsCommit"),
    ] {
        let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, statement));
        let running = in_background(session, sql);
        hit.wait()?;
        shows(expected)?;
        hit.release();
        let (back, result) = running.join();
        result?;
        session = back;
    }
    begin_everywhere(&mut session, 3)?;
    let hit = fleet.proxy(1).inject(Fault::hold(Point::Answer, "COMMIT PREPARED"));
    let running = in_background(session, "COMMIT");
    hit.wait()?;
    shows("PgFdwXactsSettle")?;
    hit.release();
    running.join().1?;
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn the_log_tells_once_why_a_server_is_lost_and_once_that_it_is_back() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    let mark = fleet.coordinator.log().mark()?;
    fleet.shard_mut(1).stop(StopMode::Immediate)?;
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    wait_for_attempts(&fleet, 1, 3)?;
    assert_eq!(told(&fleet, mark, "failed: Connection refused")?, 1);
    fleet.shard_mut(1).start()?;
    assert_settled(&fleet);
    assert_eq!(told(&fleet, mark, "LOG:  the resolver has reached server \"shard1\" again")?, 1);
    assert_eq!(told(&fleet, mark, "LOG:  resolved: COMMIT PREPARED")?, 1);
    Ok(())
}

/// How many lines with `text` the coordinator has logged since `mark`.
fn told(fleet: &Fleet, mark: Mark, text: &str) -> anyhow::Result<usize> {
    Ok(fleet.coordinator.log().since(mark)?.lines().filter(|line| line.contains(text)).count())
}
