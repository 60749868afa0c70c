//! Tries a package in a Debian with nothing but its base system: `packaging/debian/check` in a
//! chroot.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pg_test::install::finish;

use super::{Deb, report};
use crate::matrix::{commit_of, server::Server, today};
use crate::packages;
use crate::suites::{check as succeed, heading};
use crate::workspace::Workspace;

/// Where a version of PostgreSQL is tried that no release has.
const FOR_OTHERS: &str = "trixie";

/// What a package is made of, and tried with.
const PACKED: [&str; 6] = ["src", "sql", "packaging", "build.rs", "Cargo.toml", "Cargo.lock"];

/// The commit of what a package is made of now.
pub fn commit(workspace: &Workspace) -> Result<String> {
    commit_of(workspace, &PACKED)
}

/// Installs `previous` in a clean Debian, upgrades to `deb` with transactions in doubt, and plays
/// its demo. What was found goes into the book, with the `commit` that the package was built from.
pub fn in_clean_debian(
    directory: &Path,
    deb: &Deb,
    commit: String,
    previous: Option<&Deb>,
) -> Result<()> {
    let workspace = Workspace::find()?;
    let (release, server) = match packages::release_with(deb.major) {
        Some(release) => (release, None),
        None => (FOR_OTHERS, Some(server_package(&workspace, directory, deb.major)?)),
    };
    let base = base(directory, release)?;
    heading(&format!("trying the package for PostgreSQL {} in a clean Debian", deb.major));
    let parent = tempfile::Builder::new().prefix("chroot-").tempdir_in(directory)?;
    let root = parent.path().join("root");
    finish(Command::new("cp").args(["-a", "--reflink=auto"]).arg(&base).arg(&root))?;
    std::fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
    let script = workspace.root.join("packaging/debian/check");
    let mut files = vec![(script.as_path(), "check"), (deb.path.as_path(), "package.deb")];
    files.push((&previous.unwrap_or(deb).path, "previous.deb"));
    files.extend(server.as_ref().map(|path| (path.as_path(), "server.deb")));
    let mut arguments = vec![deb.major.to_string()];
    for (path, name) in files {
        std::fs::copy(path, root.join(name)).with_context(|| path.display().to_string())?;
        arguments.extend((name != "check").then(|| format!("/{name}")));
    }
    // Mounts and processes end with the namespaces.
    succeed(
        Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "chroot"])
            .arg(&root)
            .args(["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "/check"])
            .args(arguments),
    )?;
    let facts = std::fs::read_to_string(root.join("facts"))?;
    let when = report::When { day: today()?, commit };
    report::record(&workspace.root, deb, release, &facts, &when)
}

/// A Debian with its base system alone, made the first time.
fn base(directory: &Path, release: &str) -> Result<PathBuf> {
    packages::install(&["debootstrap".to_owned()])?;
    let base = directory.join(format!("debian-{release}"));
    let complete = base.join("complete");
    if !complete.exists() {
        heading(&format!("a clean {release} (some minutes, the first time)"));
        if base.exists() {
            std::fs::remove_dir_all(&base)?;
        }
        finish(Command::new("debootstrap").args(["--variant=minbase", release]).arg(&base))?;
        std::fs::write(&complete, "")?;
    }
    Ok(base)
}

/// A package of the server that the matrix tests with, laid out as Debian lays out its own. What it
/// loads uses the system's libpq, as all of Debian's does.
fn server_package(workspace: &Workspace, directory: &Path, major: u32) -> Result<PathBuf> {
    let server = Server::provide(workspace, major)?;
    let ask = |option: &str| -> Result<PathBuf> {
        Ok(finish(Command::new(&server.pg_config).arg(option))?.trim().into())
    };
    let root = directory.join(format!("server-{major}"));
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    let place = root.join(format!("usr/lib/postgresql/{major}"));
    std::fs::create_dir_all(place.join("lib"))?;
    std::fs::create_dir_all(place.join("share"))?;
    let copy = |from: PathBuf, to: &Path| {
        finish(Command::new("cp").arg("-a").arg(from.join(".")).arg(to)).map(drop)
    };
    copy(ask("--bindir")?, &place.join("bin"))?;
    copy(ask("--pkglibdir")?, &place.join("lib"))?;
    let share = root.join(format!("usr/share/postgresql/{major}"));
    std::fs::create_dir_all(&share)?;
    copy(ask("--sharedir")?, &share)?;
    // Its programs have libraries of their own, which they look for there.
    let bundled = server.home.join("packed/server");
    for entry in std::fs::read_dir(&bundled).with_context(|| bundled.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "libs") {
            finish(Command::new("cp").arg("-a").arg(path).arg(root.join("usr/lib")))?;
        }
    }
    // The programs find both below directories of these names.
    std::os::unix::fs::symlink(".", place.join("lib/postgresql"))?;
    let share = format!("/usr/share/postgresql/{major}");
    std::os::unix::fs::symlink(share, place.join("share/postgresql"))?;
    std::fs::create_dir_all(root.join("DEBIAN"))?;
    let version = finish(Command::new(&server.pg_config).arg("--version"))?;
    let version = version.split_whitespace().nth(1).context("a server has a version")?;
    let control = format!(
        "Package: postgresql-{major}\n\
         Version: {version}\n\
         Architecture: amd64\n\
         Maintainer: the pg_fdw_xacts authors <pg_fdw_xacts@localhost>\n\
         Depends: libpq5, zlib1g, libreadline8t64 | libreadline8, adduser\n\
         Description: the server that the package for PostgreSQL {major} is tried with\n"
    );
    std::fs::write(root.join("DEBIAN/control"), control)?;
    let user = "#!/bin/sh\nadduser --system --quiet --group --home /var/lib/postgresql postgres\n";
    let script = root.join("DEBIAN/postinst");
    std::fs::write(&script, user)?;
    finish(Command::new("chmod").arg("755").arg(script))?;
    let deb = directory.join(format!("postgresql-{major}_{version}.deb"));
    let mut pack = Command::new("dpkg-deb");
    finish(pack.args(["--root-owner-group", "-Znone", "--build"]).arg(&root).arg(&deb))?;
    std::fs::remove_dir_all(root)?;
    Ok(deb)
}
