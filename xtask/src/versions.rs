//! `cargo xtask check --versions`: has clippy compile the extension for every version of
//! PostgreSQL. Headers are enough for that, no server is needed.

use anyhow::Result;

use crate::headers;
use crate::matrix::{MAJORS, NEXT};
use crate::suites::{check, heading};
use crate::workspace::Workspace;
use crate::{packages, pgrx};

/// Compiles for each of them in turn.
pub fn compile() -> Result<()> {
    packages::install_missing(None)?;
    let workspace = Workspace::find()?;
    // Of its own, because pgrx is built again for each change of its configuration.
    let build = workspace.target.join("versions");
    let majors = || MAJORS.into_iter().chain([NEXT]);
    let mut servers = Vec::new();
    for major in majors() {
        servers.push((major, headers::provide(&workspace, major)?));
    }
    let workspace = workspace.building_in(build);
    pgrx::write_configuration(&workspace, &servers)?;
    for major in majors() {
        heading(&format!("the extension for PostgreSQL {major}"));
        let workspace = workspace.clone().for_version(major)?;
        let mut clippy = workspace.cargo_for_extension("clippy");
        clippy.args(["--features", &format!("pg{major}"), "--", "-D", "warnings"]);
        check(&mut clippy)?;
    }
    Ok(())
}
