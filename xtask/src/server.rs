//! The PostgreSQL installation that is used: a private, relocated copy of Debian's under the target
//! directory.
//!
//! Debian's programs find their libraries and shared files relative to themselves, so a copy of the
//! trees works anywhere. The extension is installed into the copy: that needs no root, the system's
//! PostgreSQL stays as it is, and two clones of the repository do not disturb each other.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pg_test::Installation;
use pg_test::install::finish;

/// `pg_config` of Debian's server of version `major`.
fn debian_pg_config(major: u32) -> PathBuf {
    format!("/usr/lib/postgresql/{major}/bin/pg_config").into()
}

/// The private copy of Debian's server `major` under `directory`, copied again if the system's has
/// changed.
pub fn private_copy(directory: &Path, major: u32) -> Result<Installation> {
    let copy = directory.join(format!("pg-{major}"));
    let pg_config = copy.join(format!("lib/postgresql/{major}/bin/pg_config"));
    let stamp = copy.join("copy-of");
    let original = Installation::from_pg_config(&debian_pg_config(major))
        .context("the packages are installed, but the server is not where Debian puts it")?;
    if std::fs::read_to_string(&stamp).ok().as_deref() != Some(original.version()) {
        println!("copying PostgreSQL {major} to {}", copy.display());
        if copy.exists() {
            std::fs::remove_dir_all(&copy)?;
        }
        for kind in ["lib", "share"] {
            let parent = copy.join(kind).join("postgresql");
            std::fs::create_dir_all(&parent)?;
            finish(
                Command::new("cp")
                    .arg("-a")
                    .arg(format!("/usr/{kind}/postgresql/{major}"))
                    .arg(&parent),
            )?;
        }
        std::fs::create_dir(copy.join("include"))?;
        std::os::unix::fs::symlink("/usr/include/postgresql", copy.join("include/postgresql"))?;
        // Last, so that an interrupted copy is made again.
        std::fs::write(&stamp, original.version())?;
    }
    Installation::from_pg_config(&pg_config)
}
