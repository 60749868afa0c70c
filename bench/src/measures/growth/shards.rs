//! Shards in one transaction, which writes on each of them.

use anyhow::Result;

use super::ground::Ground;
use super::work::{length, pick, rounds, slice};
use crate::contender::Contender;
use crate::curve::{Curve, Figure};
use crate::effort::{Effort, alternate};

const ONE_BY_ONE: &str = "The statements come one after the other, each waits for its answer, and all servers share \
                          the processors; one shard alone needs no second phase.";
const SHARED: &str =
    "What all participants do at once still shares the processors of this machine.";
const SMALLER: &str = "What a transaction costs once is divided by more shards; one shard alone needs no second phase.";

const FIGURES: [[Figure; 3]; 2] = [
    [
        Figure { label: "a transaction, ms", reason: ONE_BY_ONE },
        Figure { label: "its COMMIT, ms", reason: SHARED },
        Figure { label: "processor time on the coordinator per shard, µs", reason: SMALLER },
    ],
    [
        Figure { label: "postgres_fdw: a transaction, ms", reason: ONE_BY_ONE },
        Figure { label: "postgres_fdw: its COMMIT, ms", reason: SHARED },
        Figure {
            label: "postgres_fdw: processor time on the coordinator per shard, µs",
            reason: SMALLER,
        },
    ],
];

/// From one to thirty-two.
pub fn measure(effort: Effort) -> Result<Vec<Curve>> {
    let ground = Ground::start(2, &[], &[("max_connections", "200")])?;
    let mut curve = Curve::new(
        "shards",
        "shards in a transaction",
        "One client inserts a row on each shard. The shards are databases of two servers.",
    );
    let mut made = 0;
    for &shards in effort.choose(&[1, 2, 8][..], &[1, 2, 8, 32]) {
        ground.make_shards(made + 1, shards)?;
        made = shards;
        curve.point(shards);
        let mut contenders = [Contender::Ours, Contender::StockParallel]
            .map(|contender| Ok([ground.session(contender, shards)?]))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let what = format!("{shards} shards in a transaction");
        let measured = alternate(&what, rounds(effort), &mut contenders, |sessions| {
            slice(&ground, sessions, length(effort))
        })?;
        for (figures, slices) in FIGURES.iter().zip(&measured) {
            curve.note(figures[0], &pick(slices, |slice| slice.latency));
            curve.note(figures[1], &pick(slices, |slice| slice.commit));
            curve.note(figures[2], &pick(slices, |slice| slice.processor / shards as f64));
        }
    }
    Ok(vec![curve])
}
