//! Programs of others that some scenarios use: Python with the packages of
//! `pg_test/clients/requirements.txt`, a JDK with PostgreSQL's JDBC driver, Prometheus with its
//! promtool and postgres_exporter, and PgBouncer.
//!
//! The Python packages go into an environment under the target directory, which is made again when
//! the requirements change.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use pg_test::client::{JDBC_VARIABLE, PROMTOOL_VARIABLE, PYTHON_VARIABLE};
use pg_test::install::finish;
use pg_test::pooler::PGBOUNCER_VARIABLE;
use pg_test::prometheus::{EXPORTER_VARIABLE, PROMETHEUS_VARIABLE};

use crate::names::Test;
use crate::packages;
use crate::workspace::Workspace;

/// Where Debian puts the driver.
const DEBIAN_JDBC: &str = "/usr/share/java/postgresql.jar";

/// Where Debian puts PgBouncer.
const DEBIAN_PGBOUNCER: &str = "/usr/sbin/pgbouncer";

/// Debian's own Python: the only one that Debian's `python3-venv` belongs to.
const DEBIAN_PYTHON: &str = "/usr/bin/python3";

/// Where these programs are.
pub struct Clients {
    python: PathBuf,
    jdbc: PathBuf,
    pgbouncer: PathBuf,
    monitoring: Monitoring,
}

/// PgBouncer, if it is there.
pub fn pgbouncer() -> Option<PathBuf> {
    let named = std::env::var_os(PGBOUNCER_VARIABLE).map(PathBuf::from);
    Some(named.unwrap_or_else(|| DEBIAN_PGBOUNCER.into())).filter(|path| path.exists())
}

impl Clients {
    /// Whether a test uses any of them.
    pub fn are_used_by(test: &Test) -> bool {
        ["client", "pooler", "prometheus"]
            .iter()
            .any(|module| mentions(test, &format!("pg_test::{module}")))
    }

    /// Finds or installs them. The error says what is missing and that the tests were not run.
    pub fn provide(workspace: &Workspace) -> Result<Self> {
        Self::try_provide(workspace).context(
            "the scenarios need these programs and were not run (name other tests, or run other suites with `--only`)",
        )
    }

    fn try_provide(workspace: &Workspace) -> Result<Self> {
        // The compiler and not only the runtime, because the Java programs are run from source.
        let compiler = packages::succeeds(Command::new("javac").arg("-version"));
        if packages::debian_postgresql().is_some() {
            let mut wanted: Vec<String> =
                ["python3-venv", "libpostgresql-jdbc-java", "pgbouncer"].map(str::to_owned).into();
            if !compiler {
                wanted.push("default-jdk-headless".to_owned());
            }
            packages::install(&wanted)?;
        } else if !compiler {
            bail!("no javac: install a JDK, 17 or newer");
        }
        let jdbc =
            std::env::var_os(JDBC_VARIABLE).map_or_else(|| DEBIAN_JDBC.into(), PathBuf::from);
        if !jdbc.exists() {
            bail!("no {}: name PostgreSQL's JDBC driver with {JDBC_VARIABLE}", jdbc.display());
        }
        let Some(pgbouncer) = pgbouncer() else {
            bail!("no {DEBIAN_PGBOUNCER}: name PgBouncer with {PGBOUNCER_VARIABLE}");
        };
        let monitoring = Monitoring::provide(workspace)?;
        Ok(Self { python: python(workspace)?, jdbc, pgbouncer, monitoring })
    }

    /// The environment variables by which the scenarios find them.
    pub fn variables(&self) -> Vec<(&'static str, &Path)> {
        let mut variables: Vec<(&str, &Path)> = vec![
            (PYTHON_VARIABLE, &self.python),
            (JDBC_VARIABLE, &self.jdbc),
            (PGBOUNCER_VARIABLE, &self.pgbouncer),
        ];
        variables.extend(self.monitoring.variables());
        variables
    }
}

/// Whether a test has hosts of its own.
pub fn has_hosts(test: &Test) -> bool {
    mentions(test, "pg_test::network")
}

/// Has `ip`, `tc`, `ss` and `nft`, by which scenarios have hosts of their own. Without them,
/// without root, or on a kernel that lacks what they ask for, those scenarios say that they are
/// skipped.
pub fn provide_network() {
    let there = ["ip", "nft"].iter().all(|&name| packages::succeeds(Command::new(name).arg("-V")));
    if there || packages::debian_postgresql().is_none() {
        return;
    }
    if let Err(error) = packages::install(&["iproute2", "nftables"].map(str::to_owned)) {
        println!("the scenarios `network::` are skipped: {error:#}");
    }
}

fn mentions(test: &Test, module: &str) -> bool {
    std::fs::read_to_string(&test.file).unwrap_or_default().contains(module)
}

/// Prometheus and postgres_exporter.
pub struct Monitoring {
    prometheus: PathBuf,
    promtool: PathBuf,
    exporter: PathBuf,
}

impl Monitoring {
    /// Those that are named, or those in Debian's packages, which are not installed because they
    /// would start servers.
    pub fn provide(workspace: &Workspace) -> Result<Self> {
        let find = |variable: &str, package: &str, program: &str| {
            let named = std::env::var_os(variable).map(PathBuf::from);
            let installed = named.unwrap_or_else(|| PathBuf::from(program));
            if packages::succeeds(Command::new(&installed).arg("--version")) {
                return Ok(installed);
            }
            if packages::debian_postgresql().is_none() {
                bail!("no {program}: install {package}, or name it with {variable}");
            }
            let file = format!("usr/bin/{program}");
            packages::extract(package, &file, &workspace.target.join("clients"))
        };
        let exporter = "prometheus-postgres-exporter";
        Ok(Self {
            prometheus: find(PROMETHEUS_VARIABLE, "prometheus", "prometheus")?,
            promtool: find(PROMTOOL_VARIABLE, "prometheus", "promtool")?,
            exporter: find(EXPORTER_VARIABLE, exporter, exporter)?,
        })
    }

    /// The two that run, with their names.
    pub fn servers(&self) -> [(&'static str, &Path); 2] {
        [("Prometheus", &self.prometheus), ("postgres_exporter", &self.exporter)]
    }

    /// The environment variables by which they are found.
    pub fn variables(&self) -> [(&'static str, &Path); 3] {
        [
            (PROMETHEUS_VARIABLE, &self.prometheus),
            (PROMTOOL_VARIABLE, &self.promtool),
            (EXPORTER_VARIABLE, &self.exporter),
        ]
    }
}

/// The Python of an environment with the packages that the scenarios use.
fn python(workspace: &Workspace) -> Result<PathBuf> {
    let requirements = workspace.root.join("pg_test/clients/requirements.txt");
    let environment = workspace.target.join("clients/python");
    Ok(provide_python(&requirements, &environment, &[])?.join("python"))
}

/// The directory of the programs of a Python `environment` with the packages required. Of these
/// only `from_source` are built.
pub fn provide_python(
    requirements: &Path,
    environment: &Path,
    from_source: &[&str],
) -> Result<PathBuf> {
    let base = Path::new(DEBIAN_PYTHON);
    let base = if base.exists() { base } else { Path::new("python3") };
    let wanted = finish(Command::new(base).arg("--version"))?
        + &std::fs::read_to_string(requirements).context("the requirements")?;
    let programs = environment.join("bin");
    let stamp = environment.join("made-of");
    if std::fs::read_to_string(&stamp).ok().as_deref() == Some(wanted.as_str()) {
        return Ok(programs);
    }
    println!("installing the Python packages of {}", requirements.display());
    finish(Command::new(base).args(["-m", "venv", "--clear"]).arg(environment))?;
    // Nothing is compiled: a package without a wheel for this Python is an error.
    let mut pip = Command::new(programs.join("python"));
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:"]);
    for package in from_source {
        pip.args(["--no-binary", package]);
    }
    let status = pip.arg("--requirement").arg(requirements).stdin(Stdio::null()).status()?;
    if !status.success() {
        bail!(
            "pip cannot install the packages of {} ({status}); it has to reach a package index, as set in \
             pip's own configuration",
            requirements.display()
        );
    }
    // Last, so that an interrupted installation is made again.
    std::fs::write(&stamp, wanted)?;
    Ok(programs)
}
