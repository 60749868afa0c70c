//! `cargo xtask deb`: builds a Debian package of the extension for the release's own PostgreSQL.
//! `--check` installs it in a clean Debian, where its demo has to succeed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
use pg_test::install::finish;

use crate::package::{self, Package};
use crate::packages;
use crate::setup::Setup;
use crate::suites::{check as succeed, heading};

/// Builds the package, prints where it is, and tries it in a clean Debian if `check`.
pub fn run(setup: &Setup, check: bool) -> Result<()> {
    let Some(major) = packages::debian_postgresql() else {
        bail!("a package can be built on Debian 12 and 13 only");
    };
    let deb = build(setup, &package::build(setup)?, major)?;
    println!("{}", deb.display());
    if check { check_in_clean_debian(setup, &deb, major) } else { Ok(()) }
}

fn name(major: u32) -> String {
    format!("postgresql-{major}-pg-fdw-xacts")
}

fn build(setup: &Setup, package: &Package, major: u32) -> Result<PathBuf> {
    heading("building the Debian package");
    let library = package.library(major);
    finish(Command::new("strip").arg("--strip-unneeded").arg(&library))?;
    let name = name(major);
    let version = format!("{}-1", env!("CARGO_PKG_VERSION"));
    let architecture = output("dpkg", &["--print-architecture"])?;
    let root = &setup.workspace.root;
    let read =
        |file: &str| std::fs::read_to_string(root.join(file)).with_context(|| file.to_owned());
    let documents = Path::new("/usr/share/doc").join(&name);
    package.add(&documents.join("README.md"), &read("README.md")?, 0o644)?;
    package.add(&documents.join("CHANGELOG.md"), &read("CHANGELOG.md")?, 0o644)?;
    package.add(&documents.join("copyright"), &read("LICENSE")?, 0o644)?;
    let demo = read("packaging/debian/demo")?.replace("@MAJOR@", &major.to_string());
    package.add(&documents.join("examples/demo"), &demo, 0o755)?;
    // It needs at least the version of the C library that it was linked with.
    let control = format!(
        "Package: {name}\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: the pg_fdw_xacts authors <pg_fdw_xacts@localhost>\n\
         Section: database\n\
         Priority: optional\n\
         Depends: postgresql-{major}, libpq5 (>= {major}~), libc6 (>= {}), libgcc-s1\n\
         Description: atomic commit across PostgreSQL servers through foreign tables\n \
         A transaction over the foreign tables of several servers commits on all of\n \
         them or on none, whatever crashes in between. Plans as postgres_fdw does.\n",
        installed("libc6")?,
    );
    package.add(Path::new("/DEBIAN/control"), &control, 0o644)?;
    let prerm = read("packaging/debian/prerm")?.replace("@MAJOR@", &major.to_string());
    package.add(Path::new("/DEBIAN/prerm"), &prerm, 0o755)?;
    let deb = setup.workspace.target.join(format!("{name}_{version}_{architecture}.deb"));
    finish(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "--build"])
            .arg(&package.root)
            .arg(&deb),
    )?;
    Ok(deb)
}

/// The upstream version of an installed package: "2.36" of "2.36-9+deb12u10".
fn installed(package: &str) -> Result<String> {
    let version = output("dpkg-query", &["-W", "-f", "${Version}", package])?;
    Ok(version.split(['-', '+']).next().unwrap_or(&version).to_owned())
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    Ok(finish(Command::new(program).args(arguments))?.trim().to_owned())
}

/// Installs the package in a copy of a Debian with only its base system, and plays the demo there.
fn check_in_clean_debian(setup: &Setup, deb: &Path, major: u32) -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("--check makes a chroot with debootstrap: it has to run as root");
    }
    packages::install(&["debootstrap".to_owned()])?;
    let release = if major == 15 { "bookworm" } else { "trixie" };
    let base = setup.workspace.target.join(format!("debian-{release}"));
    let complete = base.join("complete");
    if !complete.exists() {
        heading(&format!("a clean {release} (some minutes, the first time)"));
        if base.exists() {
            std::fs::remove_dir_all(&base)?;
        }
        finish(Command::new("debootstrap").args(["--variant=minbase", release]).arg(&base))?;
        std::fs::write(&complete, "")?;
    }
    heading("installing the package there");
    let parent = tempfile::Builder::new().prefix("debian-").tempdir_in(&setup.workspace.target)?;
    let root = parent.path().join("root");
    finish(Command::new("cp").args(["-a", "--reflink=auto"]).arg(&base).arg(&root))?;
    std::fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
    std::fs::copy(deb, root.join("package.deb"))?;
    let demo = format!("/usr/share/doc/{}/examples/demo", name(major));
    let script = format!(
        "export DEBIAN_FRONTEND=noninteractive
         mount -t proc proc /proc
         apt-get -qq update && apt-get -qq install -y --no-install-recommends /package.deb >/dev/null
         if command -v cargo gcc; then echo 'error: a toolchain is here'; exit 1; fi
         {demo}
         echo \"shared_preload_libraries = 'pg_fdw_xacts'\" >> /etc/postgresql/{major}/main/postgresql.conf
         apt-get -qq remove -y {name} 2>&1 | tee /removed
         grep -q 'WARNING: the PostgreSQL cluster {major}/main still' /removed",
        name = name(major)
    );
    // Mounts and processes end with the namespaces.
    succeed(
        Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "chroot"])
            .arg(&root)
            .args(["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "bash", "-ec"])
            .arg(script),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    /// The output of the script that runs before the package is removed or replaced, on a machine
    /// with one cluster of this configuration.
    fn said(action: &str, postgresql_conf: &str, auto_conf: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let (cluster, data) = (directory.path().join("main"), directory.path().join("data"));
        std::fs::create_dir(&cluster).unwrap();
        std::fs::create_dir(&data).unwrap();
        let conf = format!("data_directory = '{}'\n{postgresql_conf}\n", data.display());
        std::fs::write(cluster.join("postgresql.conf"), conf).unwrap();
        std::fs::write(data.join("postgresql.auto.conf"), auto_conf).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let output = Command::new("sh")
            .arg(root.join("packaging/debian/prerm"))
            .arg(action)
            .env("PG_FDW_XACTS_CLUSTERS", directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// E15. 0.2.0 had no such script.
    #[test]
    fn who_removes_the_package_is_told_which_clusters_load_it() {
        let set = "shared_preload_libraries = 'pg_stat_statements, pg_fdw_xacts'";
        assert!(said("remove", set, "").contains("cluster @MAJOR@/main still has"));
        assert!(said("remove", "", set).contains("cluster @MAJOR@/main still has"));
        assert_eq!(said("upgrade", set, ""), "");
        let commented = format!("#{set}");
        assert_eq!(said("remove", &commented, ""), "");
        assert_eq!(said("remove", "shared_preload_libraries = '' # pg_fdw_xacts", ""), "");
    }
}
