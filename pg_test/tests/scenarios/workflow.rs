//! The commands of every pgrx project work in this workspace as they are, beside those of xtask;
//! and what they install uses the libraries of its server.

use std::path::{Path, PathBuf};
use std::process::Command;

use pg_test::Installation;
use pg_test::install::finish;

use crate::support::Outcome;

/// cargo in the workspace, as somebody runs it who has just cloned it: with a home of their own,
/// and nothing that xtask sets.
fn cargo(home: &Path) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member of the workspace");
    let mut command = Command::new("cargo");
    command.current_dir(root).env("HOME", home).env_remove("PGRX_HOME");
    for (variable, directory) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        if std::env::var_os(variable).is_none()
            && let Some(home) = std::env::home_dir()
        {
            command.env(variable, home.join(directory));
        }
    }
    // xtask keeps a cargo-pgrx of its own where another version is in use.
    let tools = root.join("target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(tools).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(path).expect("no colon in a path"));
    command
}

/// With 0.2.0 cargo hands xtask's PGRX_HOME to everything that it runs, pgrx's build scripts
/// too, which end with `$PGRX_HOME does not exist` in a fresh clone.
#[test]
fn cargo_hands_on_no_home_of_pgrx() -> Outcome {
    let home = tempfile::tempdir()?;
    let runner = r#"target."cfg(all())".runner = ["sh", "-c", "echo home: $PGRX_HOME"]"#;
    let told =
        finish(cargo(home.path()).args(["run", "--quiet", "-p", "xtask", "--config", runner]))?;
    assert_eq!(told.trim(), "home:");
    Ok(())
}

/// `cargo pgrx init` writes the configuration that all the others of its commands read. That of the
/// workspace does not know 19.
#[test]
fn cargo_pgrx_has_its_ordinary_home() -> Outcome {
    let installation = Installation::from_env()?;
    if installation.major() >= 19 {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    let label = format!("pg{}", installation.major());
    let server = format!("--{label}={}", installation.pg_config().display());
    finish(cargo(home.path()).args(["pgrx", "init", "--no-run", &server]))?;
    let written = std::fs::read_to_string(home.path().join(".pgrx/config.toml"))?;
    assert!(written.contains(&installation.pg_config().display().to_string()), "{written}");
    let found = finish(cargo(home.path()).args(["pgrx", "info", "pg-config", &label]))?;
    assert_eq!(found.trim(), installation.pg_config().display().to_string());
    Ok(())
}

/// Where the dynamic linker finds libpq for a library.
fn libpq_of(library: &Path) -> anyhow::Result<PathBuf> {
    let text = finish(Command::new("ldd").arg(library))?;
    let line = text.lines().find(|line| line.trim().starts_with("libpq.so"));
    let path = line.and_then(|line| line.split_whitespace().nth(2));
    Ok(path.unwrap_or_else(|| panic!("{} without libpq: {text}", library.display())).into())
}

/// A process has room for one libpq, and postgres_fdw of version 17 or later needs at least that of
/// its own version.
///
/// This tells of a wrong one only where the server has a libpq of its own: 0.2.0, installed
/// there with `cargo pgrx install`, takes the system's.
#[test]
fn the_library_uses_the_libpq_of_its_server() -> Outcome {
    let installation = Installation::from_env()?;
    let directory = finish(Command::new(installation.pg_config()).arg("--pkglibdir"))?;
    let directory = Path::new(directory.trim());
    let ours = libpq_of(&directory.join("pg_fdw_xacts.so"))?;
    // The programs of a server that was unpacked tell its modules where its libraries are.
    if installation.major() < 19 {
        let theirs = libpq_of(&directory.join("postgres_fdw.so"))?;
        assert_eq!(ours.canonicalize()?, theirs.canonicalize()?);
    }
    let own = installation.libdir().join("libpq.so.5");
    if own.exists() {
        assert_eq!(ours.canonicalize()?, own.canonicalize()?);
    }
    Ok(())
}
