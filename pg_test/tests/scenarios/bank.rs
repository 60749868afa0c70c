//! The bank for a short while; `cargo xtask torture` runs it for longer, with any seed.

use std::time::Duration;

use pg_test::bank::{Plan, run};

use crate::support::Outcome;

/// Together they cover everything that a seed can draw; none sets a `lock_timeout`.
const SEEDS: [u64; 3] = [11, 16, 39];

/// Where the machine is so busy that hardly anybody meets anybody, it takes several runs until
/// somebody has seen what is wrong.
const RUNS: u64 = 12;

fn survives(seed: u64) -> Outcome {
    let report = run(&Plan::draw(seed), Duration::from_secs(12), |line| eprintln!("{line}"))?;
    eprintln!("{report:?}");
    assert!(report.reads.several > 0, "nobody has read: {report:?}");
    Ok(())
}

#[test]
fn no_transfer_is_lost_or_halved_under_random_faults() -> Outcome {
    survives(SEEDS[0])
}

#[test]
fn no_transfer_is_lost_or_halved_under_other_faults() -> Outcome {
    survives(SEEDS[1])
}

#[test]
fn no_transfer_is_lost_or_halved_under_further_faults() -> Outcome {
    survives(SEEDS[2])
}

/// Without consistent reads the readers are shown half transfers, and these in any order; so they
/// can tell; see [`RUNS`].
#[test]
fn without_consistent_reads_readers_are_wrong() -> Outcome {
    for _ in 0..RUNS {
        let plan = Plan { consistent_reads: false, readers: 3, ..Plan::draw(SEEDS[0]) };
        let report = run(&plan, Duration::from_secs(5), |line| eprintln!("{line}"))?;
        eprintln!("{report:?}");
        if report.reads.torn > 0 {
            return Ok(());
        }
    }
    panic!("{RUNS} runs without half a transfer");
}

/// The record of what transactions did and saw is snapshot isolation.
#[test]
fn a_history_under_random_faults_is_snapshot_isolation() -> Outcome {
    let plan = Plan::with_history(SEEDS[0]);
    let report = run(&plan, Duration::from_secs(6), |line| eprintln!("{line}"))?;
    eprintln!("{report:?}");
    assert!(report.recorded.writers > 0 && report.recorded.reads > 0, "{report:?}");
    Ok(())
}

/// Without consistent reads it is not, so the check can tell; but nothing is lost or halved. See
/// [`RUNS`].
#[test]
fn a_history_without_consistent_reads_is_no_snapshot_isolation() -> Outcome {
    for run_number in 0..RUNS {
        let seed = SEEDS[0] + run_number;
        let plan = Plan { consistent_reads: false, ..Plan::with_history(seed) };
        let report = run(&plan, Duration::from_secs(5), |line| eprintln!("{line}"))?;
        eprintln!("{report:?}");
        if !report.recorded.anomalies.is_empty() {
            return Ok(());
        }
    }
    panic!("{RUNS} runs without an anomaly");
}

#[test]
fn the_seeds_meet_whatever_can_be_drawn() {
    let plans = SEEDS.map(Plan::draw);
    assert!(plans.iter().all(|plan| !plan.lock_timeout), "{plans:#?}");
    let features: [fn(&Plan) -> bool; 8] = [
        |plan| plan.two_coordinators,
        |plan| plan.nested,
        |plan| plan.standby,
        |plan| plan.changes,
        |plan| plan.sleepers > 0,
        |plan| plan.explicit > 0,
        |plan| plan.slips > 0,
        |plan| !plan.disorder && plan.accounts < 10,
    ];
    for (number, feature) in features.iter().enumerate() {
        assert!(plans.iter().any(feature), "no seed has feature {number}: {plans:#?}");
    }
}
