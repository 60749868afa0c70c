//! Where the benchmark ran, with what, and under which circumstances.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use pg_test::Installation;
use pg_test::install::{DIRECTORY_VARIABLE, finish};
use serde::{Deserialize, Serialize};

use crate::statistics::median;

/// The machine and the versions of everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model and number of processors.
    pub processors: String,
    /// With its unit.
    pub memory: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Of the data directories.
    pub file_system: String,
    /// Version of the servers.
    pub postgresql: String,
    /// Version of the extension.
    pub extension: String,
}

impl Machine {
    /// This machine.
    pub fn describe() -> Result<Self> {
        let processor = field("/proc/cpuinfo", "model name")?;
        let memory = field("/proc/meminfo", "MemTotal")?;
        let kilobytes: f64 = memory.split_whitespace().next().unwrap_or_default().parse()?;
        Ok(Self {
            processors: format!("{} × {processor}", std::thread::available_parallelism()?),
            memory: format!("{:.1} GiB", kilobytes / 1024.0 / 1024.0),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: finish(Command::new("stat").args(["-f", "-c", "%T"]).arg(directory()?))?
                .trim()
                .to_owned(),
            postgresql: Installation::from_env()?.version().to_owned(),
            // One version for the whole workspace.
            extension: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Name and value of each property.
    pub fn lines(&self) -> [(&'static str, &str); 6] {
        [
            ("processors", &self.processors),
            ("memory", &self.memory),
            ("kernel", &self.kernel),
            ("file system", &self.file_system),
            ("servers", &self.postgresql),
            ("pg_fdw_xacts", &self.extension),
        ]
    }
}

/// What is another each time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Circumstances {
    /// UTC.
    pub date: String,
    /// Load averages.
    pub load: String,
    /// Median time of a write of 8 kB with fdatasync where the data directories are, in ms.
    pub sync: f64,
}

impl Circumstances {
    /// Those of now.
    pub fn now() -> Result<Self> {
        let load = std::fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            date: finish(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"]))?.trim().to_owned(),
            load: load.split_whitespace().take(3).collect::<Vec<_>>().join(", "),
            sync: sync_time()?,
        })
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
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        finish(command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments))
    };
    let Ok(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    // The reports themselves are no source.
    let changes = git(&[
        "status",
        "--porcelain",
        "--",
        ":/",
        ":(exclude,top,glob)bench/*.md",
        ":(exclude,top,glob)bench/*.svg",
        ":(exclude,top)bench/results",
    ]);
    let changed = changes.is_ok_and(|changes| !changes.is_empty());
    format!("{}{}", commit.trim(), if changed { ", changed" } else { "" })
}

/// Where the data directories are.
fn directory() -> Result<PathBuf> {
    let named = std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from);
    let directory = named.unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory)
}

fn sync_time() -> Result<f64> {
    let path = directory()?.join(format!("sync-{}", std::process::id()));
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
