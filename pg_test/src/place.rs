//! Directories of clusters: where a test's clusters live, the templates they are copied from, and
//! whose they are. When this process is root, servers run as another user, who must be able to get
//! there.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};

use anyhow::{Context, Result, anyhow};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::Installation;
use crate::install::{DIRECTORY_VARIABLE, HOMES_VARIABLE};
use crate::process;

/// The directory that one of `variables` names, the first that is set; else the system's temporary
/// directory.
fn directory(variables: &[&str]) -> Result<PathBuf> {
    let Some(path) = variables.iter().find_map(std::env::var_os) else {
        return Ok(std::env::temp_dir());
    };
    let path = PathBuf::from(path);
    make_directory(&path)?;
    Ok(path)
}

/// A new directory for the cluster `name`, removed when dropped. Its own name tells the process it
/// belongs to, so that what a killed process left is found and removed by a later one.
pub(crate) fn temporary_home(name: &str) -> Result<TempDir> {
    static SWEEP: Once = Once::new();
    let base = directory(&[HOMES_VARIABLE, DIRECTORY_VARIABLE])?;
    SWEEP.call_once(|| remove_abandoned(&base));
    let home = tempfile::Builder::new()
        .prefix(&format!("{HOME_PREFIX}{}-{name}-", std::process::id()))
        .tempdir_in(base)
        .context("cannot make a directory for a cluster")?;
    open_to_all(home.path())?;
    Ok(home)
}

const HOME_PREFIX: &str = "pg_test-";

/// What a temporary home is called that is to stay.
pub(crate) fn kept(home: &Path) -> PathBuf {
    let name = home.file_name().unwrap_or_default().to_string_lossy();
    home.with_file_name(name.replacen(HOME_PREFIX, "kept-", 1))
}

/// Removes the homes in `base` whose process has ended; its servers have ended with it.
fn remove_abandoned(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| {
            name.strip_prefix(HOME_PREFIX)?.split('-').next()?.parse::<i32>().ok()
        });
        if owner.is_some_and(|pid| !process::alive(Pid::from_raw(pid))) {
            // Another user's, in a shared /tmp, stays.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A data directory fresh from initdb, to be copied: one per name, kept between runs because initdb
/// takes longer than most tests. The name of a server's version is in the path, so an upgrade makes
/// new ones.
pub(crate) fn template(installation: &Installation, name: &str) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().map_err(|_| anyhow!("initdb failed before"))?;
    let version: String =
        installation.version().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
    let templates = directory(&[DIRECTORY_VARIABLE])?.join("pg_test-templates");
    make_directory(&templates)?;
    let path = templates.join(format!("{name}-{version}"));
    if !path.exists() {
        // Made aside and renamed: another process may be doing the same.
        let unfinished = tempfile::Builder::new().prefix("initdb-").tempdir_in(&templates)?;
        open_to_all(unfinished.path())?;
        let data = unfinished.path().join("data");
        initdb(installation, &data)?;
        if let Err(error) = std::fs::rename(&data, &path)
            && !path.exists()
        {
            return Err(error.into());
        }
    }
    Ok(path)
}

/// Makes `data` and has initdb fill it.
pub(crate) fn initdb(installation: &Installation, data: &Path) -> Result<()> {
    make_data_directory(installation, data)?;
    installation
        .run(
            "initdb",
            ["-U", "postgres", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8", "-D"]
                .into_iter()
                .map(std::ffi::OsStr::new)
                .chain([data.as_os_str()]),
        )
        .map(drop)
}

/// Makes the directory `path` for a server's data: owned by the user that servers run as, closed to
/// others.
pub(crate) fn make_data_directory(installation: &Installation, path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    if let Some(user) = installation.user() {
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}

/// Makes the directory `path`, open to the user that servers run as.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    open_to_all(path)
}

/// Lets the user that servers run as pass through `path`, whatever the umask is.
fn open_to_all(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}
