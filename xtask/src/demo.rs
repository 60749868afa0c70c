//! `cargo xtask demo`: starts a coordinator and two shards, plays a session on them and leaves them
//! running.
//!
//! Everything is in the directory `demo` under the target directory. A demo starts from nothing:
//! the servers and data of an earlier one are removed first.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pg_test::install::ServerUser;
use pg_test::{Cluster, Installation, fleet};

use crate::session::{self, Stage, recording};
use crate::setup::Setup;
use crate::workspace::Workspace;

/// The file that records which PostgreSQL the servers belong to.
const PG_CONFIG: &str = "pg_config";

/// Builds and installs the extension, starts the servers, plays the session, leaves the servers
/// running. `record` is the root of the repository whose book is to show the session.
pub fn play(setup: &Setup, record: Option<&Path>) -> Result<()> {
    let directory = setup.server_files.join("demo");
    stop_servers(&directory)?;
    setup.install_extension(&[])?;

    println!("\nstarting a coordinator and two shards in {}", directory.display());
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)?;
    let pg_config = setup.installation.pg_config();
    std::fs::write(directory.join(PG_CONFIG), pg_config.to_string_lossy().as_bytes())?;
    let mut servers = Vec::new();
    for name in ["coordinator", "shard1", "shard2"] {
        servers.push(Cluster::create_kept(&setup.installation, name, &directory.join(name))?);
    }
    servers[0].configure(&[("shared_preload_libraries", "pg_fdw_xacts")])?;
    fleet::start_all(&mut servers)?;
    let shards = servers.split_off(1);
    let coordinator = servers.remove(0);
    fleet::set_up(&coordinator, &shards, |index| shards[index].port())?;
    let command_lines: Vec<String> = std::iter::once(&coordinator)
        .chain(&shards)
        .map(|server| format!("  {:<12} {}", server.name(), server.psql()))
        .collect();

    let mut stage = Stage::new(coordinator, shards)?;
    session::play(&mut stage).with_context(|| {
        format!(
            "the session did not go as expected; the servers are still running:\n{}",
            command_lines.join("\n")
        )
    })?;
    if let Some(root) = record {
        recording::write(root, &stage.server_version()?, &stage.recording())?;
    }

    let pg_ctl = pg_ctl(&setup.installation, &directory.join("shard1/data"));
    println!("\nThe servers keep running; connect to them with\n{}", command_lines.join("\n"));
    println!(
        "\nTry next, on the coordinator (lt is a local table; ft1 and ft2 are on the shards):\n  \
         BEGIN; INSERT INTO ft1 VALUES (100, 'a'); INSERT INTO ft2 VALUES (100, 'b'); PREPARE TRANSACTION 'mine';\n  \
         SELECT * FROM pg_fdw_xacts;        -- two participants, prepared\n  \
         Stop a shard before the next line, and start it again afterwards:\n    \
         {pg_ctl} -m immediate stop\n    \
         {pg_ctl} start\n  \
         COMMIT PREPARED 'mine';            -- a warning if a shard is down; it commits once it is back\n  \
         SELECT * FROM pg_stat_fdw_xacts;   -- counters, and what is in doubt\n\
         Logs: {0}/*/log. Documentation: docs/src, or cargo xtask docs. To stop the servers: cargo xtask demo --stop",
        directory.display()
    );
    Ok(())
}

/// The command line that stops and starts the server of a data directory, by whoever runs this.
fn pg_ctl(installation: &Installation, data: &Path) -> String {
    let program = installation.bindir().join("pg_ctl");
    let (program, data) = (program.display(), data.display());
    let user = installation.user().map(|_| format!("runuser -u {} -- ", ServerUser::NAME));
    format!("{}{program} -D {data} -l {data}/log", user.unwrap_or_default())
}

/// Stops the servers of an earlier demo.
pub fn stop(workspace: &Workspace) -> Result<()> {
    let stopped = stop_servers(&workspace.server_files()?.join("demo"))?;
    println!("{stopped} servers stopped");
    Ok(())
}

/// Stops the servers that run in `directory`, and returns how many there were.
fn stop_servers(directory: &Path) -> Result<usize> {
    let Ok(pg_config) = std::fs::read_to_string(directory.join(PG_CONFIG)) else {
        return Ok(0);
    };
    let installation = Installation::from_pg_config(Path::new(&pg_config))?;
    let mut stopped = 0;
    for entry in std::fs::read_dir(directory)? {
        let data: PathBuf = entry?.path().join("data");
        // A killed server leaves its files behind, so ask whether it runs.
        let data_option = [Path::new("-D"), &data];
        if data.exists()
            && installation
                .command("pg_ctl")
                .arg("status")
                .args(data_option)
                .output()?
                .status
                .success()
        {
            let stop = ["stop", "-m", "fast"].into_iter().map(Path::new).chain(data_option);
            installation.run("pg_ctl", stop)?;
            stopped += 1;
        }
    }
    Ok(stopped)
}
