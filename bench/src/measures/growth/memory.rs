//! The memory of processes: what they do not share with others, and what the kernel needs to know
//! where it is. Pages that a process has only inherited from the postmaster count in proportion.

use anyhow::{Context, Result};

/// Of one process, in megabytes.
pub fn of_process(pid: i32) -> Result<f64> {
    // Older kernels do not tell the part that is not shared memory.
    let own = kilobytes(&format!("/proc/{pid}/smaps_rollup"), &["Pss_Anon:", "Anonymous:"])?;
    let tables = kilobytes(&format!("/proc/{pid}/status"), &["VmPTE:"])?;
    Ok((own + tables) / 1000.0)
}

/// The first of some fields that a file of /proc has.
fn kilobytes(path: &str, fields: &[&str]) -> Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    let field = |name: &&str| text.lines().find_map(|line| line.strip_prefix(*name));
    let value = fields.iter().find_map(field).and_then(|line| line.split_whitespace().next());
    Ok(value.with_context(|| format!("{path} has none of {fields:?}"))?.parse()?)
}

/// What this machine has left, in megabytes.
pub fn available() -> Result<f64> {
    Ok(kilobytes("/proc/meminfo", &["MemAvailable:"])? / 1000.0)
}
