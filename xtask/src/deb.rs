//! `cargo xtask deb`: builds Debian packages of the extension, one for each version of PostgreSQL.
//! `--check` tries each in a clean Debian: an upgrade from the version before with transactions in
//! doubt, and the package's demo.

mod check;
mod library;
mod previous;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use pg_test::install::finish;

use crate::headers;
use crate::matrix::MAJORS;
use crate::package::Package;
use crate::packages;
use crate::setup::Setup;
use crate::suites::heading;
use crate::workspace::Workspace;
use library::Needs;

/// A package that was built.
struct Deb {
    /// The version of PostgreSQL it is for.
    major: u32,
    /// The archive.
    path: PathBuf,
    /// What its library needs.
    needs: Needs,
}

/// Builds the packages for `majors`, or for the version of PostgreSQL in this release of Debian;
/// prints where they are, and tries each in a clean Debian if `check`.
pub fn run(majors: &[u32], check: bool) -> Result<()> {
    let own = packages::debian_postgresql().context("packages are built on Debian 12 and 13")?;
    if check && !Uid::effective().is_root() {
        bail!("--check makes a chroot with debootstrap: it has to run as root");
    }
    let majors = if majors.is_empty() { &[own] } else { majors };
    for major in majors {
        ensure!(MAJORS.contains(major), "the extension has versions for {MAJORS:?}, not {major}");
    }
    for &major in majors {
        let workspace = Workspace::find()?;
        let directory = workspace.target.join("deb");
        let version = env!("CARGO_PKG_VERSION");
        let pg_config = headers::provide(&workspace, major)?;
        let commit = check.then(|| check::commit(&workspace)).transpose()?;
        let deb = build(workspace, &directory, &pg_config, major, version)?;
        println!("{}", deb.path.display());
        if let Some(commit) = commit {
            let previous = previous::build(&directory, &pg_config, major)?;
            check::in_clean_debian(&directory, &deb, commit, previous.as_ref())?;
        }
    }
    Ok(())
}

fn name(major: u32) -> String {
    format!("postgresql-{major}-pg-fdw-xacts")
}

/// Builds the package of the extension whose sources are in `workspace` with the headers that
/// `pg_config` names. The archive is left in the target directory.
fn build(
    workspace: Workspace,
    directory: &Path,
    pg_config: &Path,
    major: u32,
    version: &str,
) -> Result<Deb> {
    heading(&format!("building the package of {version} for PostgreSQL {major}"));
    // One directory for all versions, of PostgreSQL and of the extension: most of what is built is
    // the same. Not that of other commands, which have another `pg_config`.
    let setup = Setup::prepare(workspace.building_in(directory.join("build")), Some(pg_config))?;
    let package = Package { root: directory.join(format!("root-{major}-{version}")) };
    if package.root.exists() {
        std::fs::remove_dir_all(&package.root)?;
    }
    setup.pgrx.package(&setup.workspace, &setup.installation, &package.root)?;
    let library = package.library(major);
    finish(Command::new("strip").arg("--strip-unneeded").arg(&library))?;
    let needs = library::needs(&library)?;
    needs.check(major)?;
    let architecture = finish(Command::new("dpkg").arg("--print-architecture"))?;
    let (name, architecture) = (name(major), architecture.trim());
    let documents = Path::new("/usr/share/doc").join(&name);
    let files = Files { package: &package, root: &setup.workspace.root, major };
    files.add("README.md", &documents.join("README.md"), 0o644)?;
    files.add("CHANGELOG.md", &documents.join("CHANGELOG.md"), 0o644)?;
    files.add("LICENSE", &documents.join("copyright"), 0o644)?;
    files.add("packaging/debian/demo", &documents.join("examples/demo"), 0o755)?;
    // 0.2.0 had none.
    if setup.workspace.root.join("packaging/debian/prerm").exists() {
        files.add("packaging/debian/prerm", Path::new("/DEBIAN/prerm"), 0o755)?;
    }
    let control = format!(
        "Package: {name}\n\
         Version: {version}-1\n\
         Architecture: {architecture}\n\
         Maintainer: the pg_fdw_xacts authors <pg_fdw_xacts@localhost>\n\
         Section: database\n\
         Priority: optional\n\
         Depends: postgresql-{major}, libpq5 (>= {major}~), libc6 (>= {}), libgcc-s1\n\
         Description: atomic commit across PostgreSQL servers through foreign tables\n \
         A transaction over the foreign tables of several servers commits on all of\n \
         them or on none, whatever crashes in between. Plans as postgres_fdw does.\n",
        needs.libc
    );
    package.add(Path::new("/DEBIAN/control"), &control, 0o644)?;
    let target = directory.parent().context("a directory in the target directory")?;
    let path = target.join(format!("{name}_{version}-1_{architecture}.deb"));
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "--build"]).arg(&package.root).arg(&path);
    finish(&mut pack)?;
    Ok(Deb { major, path, needs })
}

/// Puts files of the sources into a package.
struct Files<'a> {
    package: &'a Package,
    root: &'a Path,
    major: u32,
}

impl Files<'_> {
    fn add(&self, file: &str, place: &Path, mode: u32) -> Result<()> {
        let text =
            std::fs::read_to_string(self.root.join(file)).with_context(|| file.to_owned())?;
        self.package.add(place, &text.replace("@MAJOR@", &self.major.to_string()), mode)
    }
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
