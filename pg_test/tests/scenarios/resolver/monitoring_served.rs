//! The files of `monitoring/` in the programs that they are for: postgres_exporter asks the
//! coordinator, Prometheus asks it, and every panel of the dashboard and every rule has something
//! to show.

use pg_test::dashboard;
use pg_test::oracle::assert_settled;
use pg_test::prometheus::Prometheus;
use pg_test::{DEADLINE, Fleet, wait_until};

use crate::support::Outcome;

/// What is in doubt on a shard that is away, as each panel is asked for it.
#[test]
fn every_panel_of_the_dashboard_has_an_answer_of_prometheus() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let prometheus = Prometheus::start(&fleet.coordinator)?;
    fleet.in_doubt(1)?;
    for panel in dashboard::panels()? {
        for target in &panel.targets {
            let expression = target.expression("1m", "1m");
            let what = format!("{}: {expression}", panel.title);
            // A rate needs two answers of the exporter, the last failure one failure.
            wait_until(&what, DEADLINE, || {
                let series = prometheus.instant(&expression)?;
                let is_named = |label| series.iter().all(|s| s.labels.contains_key(label));
                Ok(!series.is_empty() && target.labels().all(is_named))
            })?;
        }
    }
    let shown = |expression: &str| {
        wait_until(expression, DEADLINE, || Ok(!prometheus.instant(expression)?.is_empty()))
    };
    shown("pg_fdw_xacts_server_in_doubt{foreign_server=\"shard1\"} == 1")?;
    shown("pg_fdw_xacts_server_oldest_in_doubt_seconds{foreign_server=\"shard1\"} > 0")?;
    shown("pg_fdw_xacts_transactions_count{status=\"committing\"} == 1")?;
    fleet.reconnect(1);
    assert_settled(&fleet);
    shown("sum(pg_fdw_xacts_server_in_doubt) == 0")?;
    shown("pg_fdw_xacts_server_resolved_total{foreign_server=\"shard1\"} == 1")?;
    assert_eq!(prometheus.instant("pg_exporter_last_scrape_error != 0")?, []);
    Ok(())
}
