//! The alerts of `monitoring/` as Prometheus itself evaluates them: `promtool test rules` with what
//! the exporter's queries returned on real servers. They are silent when nothing is wrong, and tell
//! what is, before and after a restart.
//!
//! Red on 0.2.0: no alert fired for what was in doubt after a restart, nor for what the
//! resolver had left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use pg_test::client::promtool;
use pg_test::install::finish;
use pg_test::oracle::{one, prepared_gids, wait_for_attempts};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fleet, FleetOptions, StopMode, wait_until};
use postgres::Client;

use crate::doubt::{leave_orphan, resolve, told};
use crate::resolver::monitoring::{queries, rows};
use crate::support::{Outcome, assert_commits, begin_everywhere};

/// A series and its value at one time.
type Samples = BTreeMap<String, f64>;

/// How a value goes on from what was seen: minutes and hours pass for Prometheus, and not for the
/// test.
const COUNTER: &str = "_total{";
const AGE: &str = "oldest_in_doubt_seconds{";

/// What the exporter would give now.
fn samples(session: &mut Client) -> anyhow::Result<Samples> {
    let mut samples = Samples::new();
    for (prefix, query) in queries()? {
        for row in rows(session, &query.query)? {
            let value = |name: &str| row[name].clone().expect("a value");
            let is_label = |usage: &str| usage == "LABEL";
            let labels: Vec<String> = query
                .metrics
                .iter()
                .filter(|metric| is_label(&metric.usage))
                .map(|metric| format!("{}=\"{}\"", metric.name, value(&metric.name)))
                .collect();
            for metric in query.metrics.iter().filter(|metric| !is_label(&metric.usage)) {
                let series = format!("{prefix}_{}{{{}}}", metric.name, labels.join(","));
                samples.insert(series, value(&metric.name).parse()?);
            }
        }
    }
    Ok(samples)
}

/// Which alerts fire `minutes` after `now`, and for which server, if what was seen goes on so:
/// counters that have grown since `before` grow, ages do, everything else stays.
fn firing(
    before: &Samples,
    now: &Samples,
    minutes: u32,
    expected: &[(&str, &str)],
) -> anyhow::Result<()> {
    let rules =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../monitoring/prometheus_rules.yaml");
    let mut series = String::new();
    for (name, value) in now {
        let step = match name {
            name if name.contains(AGE) && *value > 0.0 => 60.0,
            name if name.contains(COUNTER) => (value - before.get(name).unwrap_or(&0.0)).max(0.0),
            _ => 0.0,
        };
        series += &format!("      - series: '{name}'\n        values: '{value}+{step}x300'\n");
    }
    let expected: BTreeSet<&(&str, &str)> = expected.iter().collect();
    let expected: String = expected
        .iter()
        .map(|(alert, server)| {
            let server = if server.is_empty() {
                String::new()
            } else {
                format!(", foreign_server=\"{server}\"")
            };
            format!(
                "          - labels: '{{alertname=\"{alert}\"{server}}}'\n            value: 1\n"
            )
        })
        .collect();
    let samples = if expected.is_empty() { "[]".to_owned() } else { format!("\n{expected}") };
    let test = format!(
        "rule_files: ['{}']
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
{series}
    promql_expr_test:
      - expr: 'count by (alertname, foreign_server) (ALERTS{{alertstate=\"firing\"}})'
        eval_time: {minutes}m
        exp_samples: {samples}
",
        rules.display()
    );
    let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    std::fs::write(file.path(), &test)?;
    if let Err(error) = finish(promtool()?.args(["test", "rules"]).arg(file.path())) {
        panic!("after {minutes} min: {error:#}\n{test}");
    }
    Ok(())
}

/// Two samples, between which the resolver has come to shard 1, if it comes at all.
fn seen(fleet: &Fleet, comes: bool) -> anyhow::Result<(Samples, Samples)> {
    let mut session = fleet.session()?;
    let before = samples(&mut session)?;
    if comes {
        wait_for_attempts(fleet, 1, 2)?;
    }
    Ok((before, samples(&mut session)?))
}

#[test]
fn the_rules_are_well_formed_and_silent_when_nothing_is_wrong() -> Outcome {
    let mut fleet = Fleet::start()?;
    let rules =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../monitoring/prometheus_rules.yaml");
    finish(promtool()?.args(["check", "rules"]).arg(rules))?;
    for id in 1..=3 {
        assert_commits(&fleet, &mut fleet.session()?, id)?;
    }
    resolve(&mut fleet.session()?)?;
    let (before, now) = seen(&fleet, false)?;
    firing(&before, &now, 290, &[])?;
    // Nor after a restart, whose sweep is over.
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    resolve(&mut fleet.session()?)?;
    let (before, now) = seen(&fleet, false)?;
    firing(&before, &now, 290, &[])
}

#[test]
fn what_is_in_doubt_on_a_lost_server_is_told_before_and_after_a_restart() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    fleet.in_doubt(1)?;
    let in_doubt = ("PgFdwXactsInDoubt", "shard1");
    let for_long = ("PgFdwXactsInDoubtForLong", "shard1");
    let fails = ("PgFdwXactsServerFails", "shard1");
    for restarted in [false, true] {
        if restarted {
            fleet.coordinator.kill9()?;
            fleet.coordinator.start()?;
        }
        let (before, now) = seen(&fleet, true)?;
        firing(&before, &now, 4, &[])?;
        firing(&before, &now, 9, &[in_doubt])?;
        firing(&before, &now, 20, &[in_doubt, fails])?;
        firing(&before, &now, 70, &[in_doubt, fails, for_long])?;
    }
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    resolve(&mut fleet.session()?)?;
    let (before, now) = seen(&fleet, false)?;
    firing(&before, &now, 290, &[])
}

/// The server answers, but the role may not settle what is there; and it is more and more.
#[test]
fn what_the_resolver_has_to_leave_is_told() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        shard: vec![("max_prepared_transactions", "200")],
        ..FleetOptions::default()
    })?;
    assert_commits(&fleet, &mut fleet.session()?, 1000)?;
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute("CREATE ROLE app LOGIN; CREATE ROLE other; GRANT ALL ON t TO other")?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET user 'app')",
    )?;
    for id in 1..=101 {
        leave_orphan(&fleet, 1, "other", id)?;
    }
    resolve(&mut session)?;
    wait_until("all are shown", DEADLINE, || Ok(told(&fleet, 1)?.in_doubt.0 == 101))?;
    let (before, now) = seen(&fleet, true)?;
    firing(
        &before,
        &now,
        20,
        &[
            ("PgFdwXactsInDoubt", "shard1"),
            ("PgFdwXactsManyInDoubt", "shard1"),
            ("PgFdwXactsServerFails", "shard1"),
        ],
    )
}

#[test]
fn what_waits_for_the_application_is_told_and_is_no_failure_of_a_server() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![("pg_fdw_xacts.max_foreign_xacts", "2")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    resolve(&mut session)?;
    let (before, now) = seen(&fleet, false)?;
    firing(
        &before,
        &now,
        20,
        &[
            ("PgFdwXactsInDoubt", "shard1"),
            ("PgFdwXactsInDoubt", "shard2"),
            ("PgFdwXactsSlotsNearlyUsed", ""),
        ],
    )?;
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    Ok(())
}

#[test]
fn a_decided_commit_that_was_undone_is_told() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    fleet.in_doubt(1)?;
    let before = samples(&mut fleet.session()?)?;
    let gid = prepared_gids(fleet.shard(1))?.remove(0);
    fleet.shard(1).client()?.batch_execute(&format!("ROLLBACK PREPARED '{gid}'"))?;
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    resolve(&mut fleet.session()?)?;
    let now = samples(&mut fleet.session()?)?;
    let heuristic = now
        .iter()
        .filter(|(name, _)| name.contains("heuristic_total") && name.contains("shard1"))
        .map(|(_, value)| *value)
        .sum::<f64>();
    assert!(heuristic >= 1.0, "{now:#?}");
    // It happened once, and does not happen again.
    firing(&now, &now, 5, &[("PgFdwXactsHeuristicOutcome", "shard1")])?;
    assert!(before.keys().eq(now.keys()), "a series has come or gone");
    Ok(())
}

#[test]
fn workers_that_do_not_run_are_told() -> Outcome {
    let mut fleet = Fleet::start()?;
    fleet.coordinator.configure(&[("max_worker_processes", "1")])?;
    fleet.coordinator.restart()?;
    let mut session = fleet.session()?;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_fdw_xacts%'";
    wait_until("only the launcher runs", DEADLINE, || Ok(one::<i64>(&mut session, running)? <= 1))?;
    let (before, now) = seen(&fleet, false)?;
    let launcher = now.iter().any(|(name, v)| name.contains("launcher_running") && *v > 0.0);
    let mut expected = vec![("PgFdwXactsResolverNotRunning", "")];
    if !launcher {
        expected.push(("PgFdwXactsLauncherNotRunning", ""));
    }
    firing(&before, &now, 10, &expected)?;
    fleet.coordinator.stop(StopMode::Fast)
}
