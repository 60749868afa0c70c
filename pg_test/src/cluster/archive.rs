//! Base backups, WAL archives, and point-in-time recovery from them.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::Cluster;
use crate::install::finish;
use crate::{DEADLINE, place, wait_until};

impl Cluster {
    fn archive(&self) -> PathBuf {
        self.home().join("archive")
    }

    fn backup(&self) -> PathBuf {
        self.home().join("backup")
    }

    /// Has the server archive its WAL, from its next start on.
    pub fn archive_wal(&self) -> Result<()> {
        place::make_data_directory(&self.installation, &self.archive())?;
        let command = format!("cp %p {}/%f", self.archive().display());
        self.configure(&[("archive_mode", "on"), ("archive_command", &command)])
    }

    /// Makes a base backup of the running server, which [`restore`](Self::restore) begins with.
    pub fn base_backup(&self) -> Result<()> {
        place::make_data_directory(&self.installation, &self.backup())?;
        let (backup, port) = (self.backup(), self.port().to_string());
        self.installation.run(
            "pg_basebackup",
            ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"]
                .into_iter()
                .chain(["--no-sync", "--checkpoint=fast", "-D"])
                .map(std::ffi::OsStr::new)
                .chain([backup.as_os_str()]),
        )?;
        Ok(())
    }

    /// Waits until everything that the server has written so far is in its archive.
    pub fn finish_archiving(&self) -> Result<()> {
        let file: String =
            self.client()?.query_one("SELECT pg_walfile_name(pg_switch_wal())", &[])?.get(0);
        wait_until("the WAL is archived", DEADLINE, || Ok(self.archive().join(&file).exists()))
    }

    /// Puts the base backup in the place of the data directory, and recovers up to a restore point.
    /// The server must not be running; it is when this returns, and archives nothing.
    pub fn restore(&mut self, point: &str) -> Result<()> {
        if self.is_running() {
            bail!("{} is running", self.name);
        }
        std::fs::remove_dir_all(self.data())?;
        let mut copy = std::process::Command::new("cp");
        finish(copy.args(["-a", "--reflink=auto"]).arg(self.backup()).arg(self.data()))?;
        std::fs::write(self.data().join("recovery.signal"), "")?;
        self.configure(&[
            ("archive_mode", "off"),
            ("restore_command", &format!("cp {}/%f %p", self.archive().display())),
            ("recovery_target_name", point),
            ("recovery_target_timeline", "current"),
            ("recovery_target_action", "promote"),
        ])?;
        self.start()?;
        let mut session = self.client()?;
        wait_until("the server has been recovered", DEADLINE, || {
            Ok(!session.query_one("SELECT pg_is_in_recovery()", &[])?.get::<_, bool>(0))
        })
    }
}
