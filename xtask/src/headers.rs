//! The headers of a version of PostgreSQL that this machine does not have, and a `pg_config` that
//! names them and the directories where Debian has that server.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pg_test::install::finish;

use crate::matrix::server::Server;
use crate::packages;
use crate::upstream::source;
use crate::workspace::Workspace;

/// The `pg_config` of PostgreSQL `major`. The headers are Debian's, or, of one that no release
/// has, those of the server that the matrix tests with. What was fetched before is taken as it is.
pub fn provide(workspace: &Workspace, major: u32) -> Result<PathBuf> {
    let directory = workspace.target.join(format!("headers/{major}"));
    let script = directory.join("pg_config");
    if script.exists() {
        return Ok(script);
    }
    let headers = match packages::release_with(major) {
        Some(release) => {
            let package = format!("postgresql-server-dev-{major}");
            let root = source::unpacked_package(&directory, &package, release)?;
            root.join(format!("usr/include/postgresql/{major}/server"))
        }
        None => {
            let server = Server::provide(workspace, major)?;
            finish(Command::new(server.pg_config).arg("--includedir-server"))?.trim().into()
        }
    };
    let configuration = std::fs::read_to_string(headers.join("pg_config.h"))
        .with_context(|| headers.display().to_string())?;
    let version = version(&configuration).context("pg_config.h says no version")?;
    std::fs::create_dir_all(&directory)?;
    std::fs::write(&script, answers(&headers, major, version))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// The version in a server's pg_config.h.
fn version(configuration: &str) -> Option<&str> {
    let mut lines = configuration.lines();
    lines.find_map(|line| line.strip_prefix("#define PG_VERSION ")?.split('"').nth(1))
}

/// A program that answers as `pg_config` does on a Debian with the server. That of the package
/// itself may need a newer C library than is here.
fn answers(headers: &Path, major: u32, version: &str) -> String {
    let server = format!("/usr/lib/postgresql/{major}");
    let libraries = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let headers = headers.display();
    let answers = [
        ("version", format!("PostgreSQL {version}")),
        ("bindir", format!("{server}/bin")),
        ("includedir", "/usr/include/postgresql".to_owned()),
        ("pkgincludedir", "/usr/include/postgresql".to_owned()),
        ("includedir-server", headers.to_string()),
        ("libdir", libraries),
        ("pkglibdir", format!("{server}/lib")),
        ("sharedir", format!("/usr/share/postgresql/{major}")),
        ("cppflags", "-D_GNU_SOURCE".to_owned()),
        ("configure", String::new()),
    ];
    let mut script = "#!/bin/sh\ncase $1 in\n".to_owned();
    for (option, answer) in answers {
        script += &format!("--{option}) echo \"{answer}\" ;;\n");
    }
    script + "*) echo \"pg_config: $1 is not known here\" >&2; exit 1 ;;\nesac\n"
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn the_version_is_read_from_the_header() {
        let header =
            "#define PG_VERSION_NUM 170012\n#define PG_VERSION \"17.12 (Debian 17.12-1)\"\n";
        assert_eq!(version(header), Some("17.12 (Debian 17.12-1)"));
        assert_eq!(version("#define PG_VERSION_NUM 170012\n"), None);
    }
}
