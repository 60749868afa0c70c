//! The bank for a short while; `cargo xtask torture` runs it for longer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pg_test::bank::{Options, run};

use crate::support::Outcome;

/// The seed of the run is another each time; it is printed, with what was done, when something is wrong.
#[test]
fn no_transfer_is_lost_or_halved_under_random_faults() -> Outcome {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let options = Options { duration: Duration::from_secs(20), sessions: 6, seed };
    eprintln!("seed {seed}");
    let report = run(&options, |line| eprintln!("{line}"))?;
    eprintln!("{report:?}");
    Ok(())
}
