//! Where the benchmark ran and with what.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use pg_test::install::{DIRECTORY_VARIABLE, finish};
use postgres::Client;
use serde::Serialize;

use crate::statistics::median;

/// The machine and the versions of everything.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// UTC.
    pub date: String,
    /// Model and number of processors.
    pub processors: String,
    /// Memory in GiB.
    pub memory: f64,
    /// Release of the kernel.
    pub kernel: String,
    /// Load averages before the servers were started.
    pub load: String,
    /// Median time of a write of 8 kB with fdatasync where the data directories are, in ms.
    pub sync: f64,
    /// `version()` of the servers.
    pub postgresql: String,
    /// Version of the extension.
    pub extension: String,
    /// Commit that it was built from.
    pub commit: String,
}

impl Machine {
    /// The load averages now.
    pub fn load() -> Result<String> {
        let text = std::fs::read_to_string("/proc/loadavg")?;
        Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(", "))
    }

    /// Describes this machine; `load` is that of the start, `session` one on the coordinator.
    pub fn describe(load: String, session: &mut Client) -> Result<Self> {
        let mut ask = |sql: &str| -> Result<String> { Ok(session.query_one(sql, &[])?.get(0)) };
        let processor = field("/proc/cpuinfo", "model name")?;
        let memory = field("/proc/meminfo", "MemTotal")?;
        let kilobytes: f64 = memory.split_whitespace().next().unwrap_or_default().parse()?;
        Ok(Self {
            date: ask("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')")?,
            processors: format!("{} × {processor}", std::thread::available_parallelism()?),
            memory: kilobytes / 1024.0 / 1024.0,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load,
            sync: sync_time()?,
            postgresql: ask("SELECT version()")?,
            extension: ask("SELECT extversion FROM pg_extension WHERE extname = 'pg_fdw_xacts'")?,
            commit: commit(),
        })
    }

    /// Name and value of each property, for the report's head.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("date", format!("{} UTC", self.date)),
            ("processors", self.processors.clone()),
            ("memory", format!("{:.1} GiB", self.memory)),
            ("kernel", self.kernel.clone()),
            ("load averages at the start", self.load.clone()),
            ("write of 8 kB with fdatasync", format!("{:.2} ms", self.sync)),
            ("PostgreSQL", self.postgresql.clone()),
            ("pg_fdw_xacts", format!("{}, commit {}", self.extension, self.commit)),
        ]
    }
}

/// What follows `name` and a colon in a file of /proc.
fn field(path: &str, name: &str) -> Result<String> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    Ok(line.map_or("unknown", |(_, value)| value.trim()).to_owned())
}

/// The commit of the source, and whether it has been changed since; "unknown" outside of a
/// repository.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let mut command = std::process::Command::new("git");
        finish(command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments))
    };
    let Ok(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    // The report itself is no source.
    let changes = git(&[
        "status",
        "--porcelain",
        "--",
        ":/",
        ":(exclude,top,glob)bench/report.*",
        ":(exclude,top,glob)bench/*.svg",
    ]);
    let changed = changes.is_ok_and(|changes| !changes.is_empty());
    format!("{}{}", commit.trim(), if changed { ", changed" } else { "" })
}

fn sync_time() -> Result<f64> {
    let directory =
        std::env::var_os(DIRECTORY_VARIABLE).unwrap_or_else(|| std::env::temp_dir().into());
    let path = Path::new(&directory).join(format!("sync-{}", std::process::id()));
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        file.write_all(&[1; 8192])?;
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(&path)?;
    median(&times).context("there are times")
}
