//! `cargo xtask docs`: renders the book in `docs/` to HTML.

use anyhow::Result;

use crate::suites::check;
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
