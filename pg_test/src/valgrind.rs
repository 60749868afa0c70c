//! The coordinator under valgrind, which the extension runs in: memory that is read without having
//! been written, or after it was freed.
//!
//! The server has to be built with USE_VALGRIND, so that valgrind knows its memory contexts. What
//! it finds goes to the server's log, where it fails the test. `cargo xtask valgrind` runs it.

use std::process::Command;
use std::time::Duration;

use crate::Installation;

/// The environment variable that has coordinators run under valgrind, with this file of
/// suppressions.
pub const SUPPRESSIONS_VARIABLE: &str = "PG_TEST_VALGRIND";

/// By how much everything is slower.
const SLOWNESS: u32 = 15;

/// The default of `pg_fdw_xacts.commit_timeout`.
const EXTENSIONS_DEADLINE: Duration = Duration::from_secs(10);

/// The command that starts the server of this name.
pub(crate) fn server(installation: &Installation, name: &str) -> Command {
    match std::env::var_os(SUPPRESSIONS_VARIABLE) {
        Some(suppressions) if name == "coordinator" => {
            let mut command = installation.command("/usr/bin/valgrind");
            command.args(["--quiet", "--trace-children=yes", "--leak-check=no"]);
            // With --track-origins=yes it says more of what it finds, in twice the time.
            command.arg("--num-callers=25");
            command.arg(format!("--suppressions={}", suppressions.display()));
            command.arg(installation.bindir().join("postgres"));
            // The extension's own deadlines, where a session does not set them.
            let limit = deadline(EXTENSIONS_DEADLINE).as_millis();
            command.args(["-c", &format!("pg_fdw_xacts.commit_timeout={limit}")]);
            command
        }
        _ => installation.command("postgres"),
    }
}

/// The deadline that is meant by one without valgrind.
pub(crate) fn deadline(usual: Duration) -> Duration {
    if std::env::var_os(SUPPRESSIONS_VARIABLE).is_some() { usual * SLOWNESS } else { usual }
}
