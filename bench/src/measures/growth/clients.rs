//! Clients at once, each with a session of its own that writes on two shards.

use anyhow::Result;

use super::ground::Ground;
use super::work::{length, pick, rounds, slice};
use crate::contender::{Contender, Session};
use crate::curve::{Curve, Figure};
use crate::effort::{Effort, alternate};

const BUSY: &str = "More clients use the processors better until these are busy; from there on each waits for the \
                    others.";
const CROWD: &str = "More processes take turns on the same processors.";

const FIGURES: [[Figure; 3]; 2] = [
    [
        Figure { label: "transactions per second", reason: BUSY },
        Figure { label: "a 2-shard transaction, ms", reason: BUSY },
        Figure { label: "processor time of it on the coordinator, µs", reason: CROWD },
    ],
    [
        Figure { label: "postgres_fdw: transactions per second", reason: BUSY },
        Figure { label: "postgres_fdw: a 2-shard transaction, ms", reason: BUSY },
        Figure { label: "postgres_fdw: processor time on the coordinator, µs", reason: CROWD },
    ],
];

/// From one to two hundred.
pub fn measure(effort: Effort) -> Result<Vec<Curve>> {
    let settings = &[("max_connections", "500"), ("max_prepared_transactions", "500")];
    let ground = Ground::start(2, settings, settings)?;
    ground.make_shards(1, 2)?;
    let mut curve = Curve::new(
        "clients",
        "clients",
        "Each client has a session of its own, and inserts a row on each of two shards in each transaction.",
    );
    for &clients in effort.choose(&[1, 10, 50][..], &[1, 10, 50, 200]) {
        curve.point(clients);
        let mut contenders = [Contender::Ours, Contender::StockParallel]
            .map(|contender| (0..clients).map(|_| ground.session(contender, 2)).collect())
            .into_iter()
            .collect::<Result<Vec<Vec<Session>>>>()?;
        let what = format!("{clients} clients");
        let measured = alternate(&what, rounds(effort), &mut contenders, |sessions| {
            slice(&ground, sessions, length(effort))
        })?;
        for (figures, slices) in FIGURES.iter().zip(&measured) {
            curve.note(figures[0], &pick(slices, |slice| slice.rate));
            curve.note(figures[1], &pick(slices, |slice| slice.latency));
            curve.note(figures[2], &pick(slices, |slice| slice.processor));
        }
    }
    Ok(vec![curve])
}
