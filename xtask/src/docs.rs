//! `cargo xtask docs`: renders the book in `docs/` to HTML, and draws its picture of the dashboard.

use std::process::Command;

use anyhow::{Context, Result};
use pg_test::install::{DIRECTORY_VARIABLE, PG_CONFIG_VARIABLE};

use crate::clients::Monitoring;
use crate::matrix::today;
use crate::setup::Setup;
use crate::suites::{check, heading};
use crate::workspace::Workspace;

/// Renders into `book` under the target directory, and prints the first page's path.
pub fn render(workspace: &Workspace) -> Result<()> {
    let output = workspace.target.join("book");
    let mut command = workspace.cargo();
    command.args(["run", "--quiet", "-p", "render-docs", "--"]);
    check(command.arg(workspace.root.join("docs")).arg(&output))?;
    println!("{}", output.join("index.html").display());
    Ok(())
}

/// Draws the dashboard of `monitoring/` with data of real servers, into the sources of the book.
pub fn draw_dashboard(setup: &Setup) -> Result<()> {
    let monitoring = Monitoring::provide(&setup.workspace)?;
    heading("installing the extension");
    setup.install_extension(&[])?;
    heading("four minutes of traffic and faults");
    let picture = setup.workspace.root.join("docs/src/dashboard.svg");
    let postgresql = setup.installation.version().split(' ').nth(1).unwrap_or_default();
    let mut remark = format!("PostgreSQL {postgresql}");
    for (name, program) in monitoring.servers() {
        // One of them says so on its standard output, the other does not.
        let said = Command::new(program).arg("--version").output()?;
        let said = [said.stdout, said.stderr].concat();
        remark += &format!(", {name} {}", version(&String::from_utf8_lossy(&said))?);
    }
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .envs(monitoring.variables())
        .args(["run", "--quiet", "-p", "dashboard", "--"])
        .arg(&picture)
        .arg(format!("{remark}; {}.", today()?));
    check(&mut command)?;
    println!("{}", picture.display());
    Ok(())
}

/// The version that a program of Prometheus's says it has: "prometheus, version 2.42.0+ds (…)".
fn version(text: &str) -> Result<&str> {
    let mut words = text.split_whitespace().skip_while(|word| *word != "version");
    words.nth(1).with_context(|| format!("no version: {text}"))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn a_program_says_its_version() {
        let text = "postgres_exporter, version 0.11.1 (branch: debian/sid)\n build user: x\n";
        assert_eq!(version(text).unwrap(), "0.11.1");
        assert!(version("").is_err());
    }
}
