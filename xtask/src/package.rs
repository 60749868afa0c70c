//! `cargo xtask package`: builds the extension as users get it and lays out its files as in the
//! server's directories.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::setup::Setup;
use crate::suites::heading;
use crate::workspace::EXTENSION;

/// The files of a package.
pub struct Package {
    /// The directory that stands for `/`.
    pub root: PathBuf,
}

/// Builds the package and prints where it is.
pub fn run(setup: &Setup) -> Result<()> {
    let package = build(setup)?;
    println!("{}", package.root.display());
    Ok(())
}

/// Builds for the server of this set-up. If that is the private copy of Debian's server, the files
/// are laid out for Debian's own.
pub fn build(setup: &Setup) -> Result<Package> {
    heading("packaging the extension, optimised");
    let root = setup.workspace.target.join("package");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    setup.pgrx.package(&setup.workspace, &setup.installation, &root)?;
    let copy = setup.server_files.join(format!("pg-{}", setup.installation.major()));
    if setup.installation.pg_config().starts_with(&copy) {
        let inside = root.join(copy.strip_prefix("/").context("an absolute path")?);
        let usr = root.join("usr.new");
        std::fs::rename(&inside, &usr).with_context(|| inside.display().to_string())?;
        for entry in std::fs::read_dir(&root)? {
            let path = entry?.path();
            if path != usr {
                std::fs::remove_dir_all(path)?;
            }
        }
        std::fs::rename(usr, root.join("usr"))?;
    }
    Ok(Package { root })
}

impl Package {
    /// The library.
    pub fn library(&self, major: u32) -> PathBuf {
        self.root.join(format!("usr/lib/postgresql/{major}/lib/{EXTENSION}.so"))
    }

    /// Adds a file, at its path on the machine where the package will be installed.
    pub fn add(&self, place: &Path, contents: &str, mode: u32) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.root.join(place.strip_prefix("/").context("an absolute path")?);
        std::fs::create_dir_all(path.parent().context("a file in a directory")?)?;
        std::fs::write(&path, contents)?;
        Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    #[test]
    fn pgxn_is_told_the_version_and_what_the_extension_requires() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
        let meta: Value = serde_json::from_str(&read("META.json")).unwrap();
        for key in ["name", "abstract", "version", "maintainer", "license", "provides", "meta-spec"]
        {
            assert!(!meta[key].is_null(), "no {key}");
        }
        assert_eq!(meta["name"], super::EXTENSION);
        assert_eq!(meta["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(meta["meta-spec"]["version"], "1.0.0");
        let provided = &meta["provides"][super::EXTENSION];
        assert_eq!(provided["version"], env!("CARGO_PKG_VERSION"));
        for key in ["file", "docfile"] {
            let file = provided[key].as_str().unwrap();
            assert!(root.join(file).exists(), "{file}");
        }
        let control = read("pg_fdw_xacts.control");
        assert!(control.contains("default_version = '@CARGO_VERSION@'"), "{control}");
    }
}
