//! Prometheus and postgres_exporter beside a coordinator, with the files of `monitoring/`: what an
//! operator's dashboard and alerts are made of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use tempfile::TempDir;

use crate::client::promtool;
use crate::install::finish;
use crate::port::PortLease;
use crate::{Cluster, DEADLINE, place, process, wait_until};

/// The environment variable that names Prometheus's server.
pub const PROMETHEUS_VARIABLE: &str = "PG_TEST_PROMETHEUS";

/// The environment variable that names postgres_exporter.
pub const EXPORTER_VARIABLE: &str = "PG_TEST_POSTGRES_EXPORTER";

/// The role that the exporter connects as: no superuser.
const ROLE: &str = "exporter";

/// Both programs, which end when this is dropped.
#[derive(Debug)]
pub struct Prometheus {
    // Dropped first: they write into `home`.
    _programs: Vec<Program>,
    port: PortLease,
    _exporter_port: PortLease,
    _home: TempDir,
}

/// A series with its values, each at a Unix time.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Times in seconds, and values. An instant query has one.
    pub values: Vec<(f64, f64)>,
}

impl Prometheus {
    /// Starts both, and waits until Prometheus has got an answer from the exporter, which it asks
    /// once each second. Creates the role that the exporter connects to `coordinator` as.
    pub fn start(coordinator: &Cluster) -> Result<Self> {
        let create = format!("CREATE ROLE {ROLE} LOGIN IN ROLE pg_monitor");
        coordinator.client()?.batch_execute(&create)?;
        let home = place::temporary_home("prometheus")?;
        let (port, exporter_port) = (PortLease::take()?, PortLease::take()?);
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring").canonicalize()?;
        let settings = home.path().join("prometheus.yaml");
        let text = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n\
             rule_files: ['{}']\n\
             scrape_configs:\n  - job_name: pg_fdw_xacts\n    static_configs:\n      \
             - targets: ['127.0.0.1:{}']\n",
            files.join("prometheus_rules.yaml").display(),
            exporter_port.number()
        );
        std::fs::write(&settings, text)?;

        let mut exporter = command(EXPORTER_VARIABLE)?;
        let source = format!(
            "host=127.0.0.1 port={} user={ROLE} dbname=postgres sslmode=disable",
            coordinator.port()
        );
        exporter.env("DATA_SOURCE_NAME", source);
        let queries = files.join("postgres_exporter.yaml");
        exporter.arg(format!("--extend.query-path={}", queries.display()));
        exporter.arg(format!("--web.listen-address=127.0.0.1:{}", exporter_port.number()));
        // What it asks by itself is not of interest, nor made for every version of the server.
        exporter.args(["--disable-default-metrics", "--disable-settings-metrics"]);
        exporter.args(["--no-collector.database", "--no-collector.bgwriter"]);
        let mut prometheus = command(PROMETHEUS_VARIABLE)?;
        prometheus.arg(format!("--config.file={}", settings.display()));
        prometheus.arg(format!("--storage.tsdb.path={}", home.path().join("data").display()));
        prometheus.arg(format!("--web.listen-address=127.0.0.1:{}", port.number()));
        let programs = vec![
            Program::start(exporter, &home.path().join("exporter.log"))?,
            Program::start(prometheus, &home.path().join("prometheus.log"))?,
        ];

        let started =
            Self { _programs: programs, port, _exporter_port: exporter_port, _home: home };
        // Until it listens, asking it fails.
        wait_until("Prometheus has an answer of the exporter", DEADLINE, || {
            let up = started.instant("up == 1 and on () pg_exporter_last_scrape_error == 0");
            Ok(up.is_ok_and(|series| !series.is_empty()))
        })
        .with_context(|| started.logs())?;
        Ok(started)
    }

    /// What `expression` is now.
    pub fn instant(&self, expression: &str) -> Result<Vec<Series>> {
        self.ask(&["instant".to_owned()], expression)
    }

    /// What `expression` was between two times, every `step` seconds.
    pub fn range(
        &self,
        expression: &str,
        from: SystemTime,
        to: SystemTime,
        step: u32,
    ) -> Result<Vec<Series>> {
        let unix = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH);
        let (from, to) = (unix(from)?.as_secs_f64(), unix(to)?.as_secs_f64());
        let options =
            [format!("--start={from:.3}"), format!("--end={to:.3}"), format!("--step={step}s")];
        let mut arguments = vec!["range".to_owned()];
        arguments.extend(options);
        self.ask(&arguments, expression)
    }

    fn ask(&self, arguments: &[String], expression: &str) -> Result<Vec<Series>> {
        let mut query = promtool()?;
        query.args(["query", "--format=json"]).args(arguments);
        query.arg(format!("http://127.0.0.1:{}", self.port.number())).arg(expression);
        parse(&finish(&mut query)?)
    }

    /// What both have written.
    pub fn logs(&self) -> String {
        self._programs
            .iter()
            .map(|program| std::fs::read_to_string(&program.log).unwrap_or_default())
            .collect()
    }
}

/// A program that ends when this is dropped.
#[derive(Debug)]
struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = std::fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let what = format!("cannot run {command:?}");
        let child = process::spawn_tied_by(nix::sys::signal::Signal::SIGKILL, command, None);
        Ok(Self { child: child.context(what)?, log: log.to_owned() })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program that `variable` names, without the caller's environment.
fn command(variable: &str) -> Result<Command> {
    let program = std::env::var_os(variable).ok_or_else(|| {
        anyhow!("{variable} is not set: run the scenarios with `cargo xtask test`")
    })?;
    let mut command = Command::new(program);
    command.env_clear().current_dir("/");
    Ok(command)
}

/// A series as promtool prints it, of an instant query or of one over a range.
#[derive(Deserialize)]
struct Printed {
    metric: BTreeMap<String, String>,
    value: Option<(f64, String)>,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

fn parse(json: &str) -> Result<Vec<Series>> {
    let printed: Vec<Printed> = serde_json::from_str(json).with_context(|| json.to_owned())?;
    let series = |printed: Printed| -> Result<Series> {
        let values = printed.value.into_iter().chain(printed.values);
        let values = values.map(|(time, value)| Ok((time, value.parse()?)));
        Ok(Series { labels: printed.metric, values: values.collect::<Result<_>>()? })
    };
    printed.into_iter().map(series).collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn values_at_one_time_and_over_a_range_are_read() {
        let instant = parse(r#"[{"metric":{"a":"b"},"value":[1.5,"2"]}]"#).unwrap();
        assert_eq!(instant[0].labels["a"], "b");
        assert_eq!(instant[0].values, [(1.5, 2.0)]);
        let range = parse(r#"[{"metric":{},"values":[[1,"2"],[2,"+Inf"]]}]"#).unwrap();
        assert_eq!(range[0].values, [(1.0, 2.0), (2.0, f64::INFINITY)]);
        assert!(parse("[]").unwrap().is_empty());
    }
}
