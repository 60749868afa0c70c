//! A server that needs a newer C library than this machine has: its Debian packages and all the
//! libraries they need, unpacked, and its programs pointed at those. They find their own files
//! relative to themselves, so they run where they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pg_test::install::finish;

use super::server::clear;
use crate::packages;
use crate::upstream::source;

/// Where its packages are, and where what they need is.
const RELEASES: [&str; 2] = ["experimental", "sid"];

/// What its packages need to be set up on a machine, which they are not here.
const WITHOUT: [&str; 9] = [
    "adduser",
    "debconf",
    "init-system-helpers",
    "locales",
    "perl",
    "postgresql-client-common",
    "postgresql-common",
    "ssl-cert",
    "tzdata",
];

/// Makes the server of version `major` in `directory`, with `prefix` as a link to it.
pub fn make(directory: &Path, major: u32, prefix: &Path) -> Result<()> {
    packages::install(&["patchelf".to_owned()])?;
    clear(&[directory, prefix])?;
    // libpq is of the server's version. apt mixes two versions of the C library's packages if it is
    // not told which to take.
    let closed =
        [format!("postgresql-{major}"), "libpq5/experimental".to_owned(), "libc6/sid".to_owned()];
    let alone = [format!("postgresql-server-dev-{major}")];
    let root = source::unpacked_with_all(directory, &RELEASES, (&closed, &alone), &WITHOUT)?;
    let home = root.join(format!("usr/lib/postgresql/{major}"));
    let libraries = libraries(&root);
    let loader = loader(&root)?;
    // Its programs, and the drivers of PostgreSQL's own tests.
    for directory in ["bin", "lib/pgxs/src/test/regress", "lib/pgxs/src/test/isolation"] {
        for entry in std::fs::read_dir(home.join(directory))? {
            point_at(&entry?.path(), &loader, &libraries)?;
        }
    }
    std::os::unix::fs::symlink(home, prefix).with_context(|| prefix.display().to_string())
}

/// Has a program find the libraries there, if it is one.
fn point_at(program: &Path, loader: &Path, libraries: &Path) -> Result<()> {
    if !std::fs::read(program)?.starts_with(b"\x7fELF") {
        return Ok(());
    }
    // The kind of path that also holds for the libraries of what is loaded.
    let mut patch = Command::new("patchelf");
    patch.arg("--set-interpreter").arg(loader).arg("--force-rpath");
    finish(patch.arg("--set-rpath").arg(libraries).arg(program)).map(drop)
}

/// With what cargo is to run programs that use the libpq of such a server, as a variable of its
/// environment: they need the libraries that this libpq needs. `None` for any other server.
pub fn runner(pg_config: &Path) -> Result<Option<(String, String)>> {
    let Some(root) = pg_config.ancestors().find(|path| path.ends_with("packed/root")) else {
        return Ok(None);
    };
    let variable =
        format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase());
    let (loader, libraries) = (loader(root)?, libraries(root));
    let runner = format!("{} --library-path {}", loader.display(), libraries.display());
    Ok(Some((variable, runner)))
}

fn libraries(root: &Path) -> PathBuf {
    root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}

/// The dynamic linker among the libraries.
fn loader(root: &Path) -> Result<PathBuf> {
    let places = ["usr/lib64", "usr/lib"].map(|place| root.join(place));
    places
        .iter()
        .filter_map(|place| std::fs::read_dir(place).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"))
        })
        .context("the C library has no dynamic linker")
}
