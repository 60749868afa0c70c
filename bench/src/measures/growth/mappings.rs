//! User mappings that have been used in distributed transactions.

use std::time::Instant;

use anyhow::Result;

use super::ground::Ground;
use super::memory;
use super::work::{MACHINE, milliseconds, note_query, note_time, note_transactions};
use crate::contender::Contender;
use crate::curve::{Curve, Figure};
use crate::effort::Effort;
use crate::progress::say;

const SWEPT: Figure = Figure {
    label: "from a crash until all are swept, ms",
    reason: "One session asks for all mappings at an address; what has grown is the list of them that it goes through.",
};
const FIRST: Figure = Figure { label: "first transaction of a session, ms", reason: MACHINE };
const STOCK_FIRST: Figure = Figure { label: "postgres_fdw: the same, ms", reason: MACHINE };
const STATISTICS: Figure = Figure {
    label: "SELECT * FROM pg_stat_fdw_xacts, ms",
    reason: "It reads the list of participants.",
};
const MEMORY: Figure =
    Figure { label: "memory of the resolver, MB", reason: "It knows each of them." };

/// From one to four thousand.
pub fn measure(effort: Effort) -> Result<Vec<Curve>> {
    let mut ground = Ground::start(2, &[], &[])?;
    ground.make_shards(1, 2)?;
    let mut curve = Curve::new(
        "mappings",
        "user mappings",
        "Mappings of so many roles for one of two servers. Before each point the coordinator is killed.",
    );
    let mut there = 1;
    for &mappings in effort.choose(&[1, 100, 500][..], &[1, 100, 1_000, 4_000]) {
        say(&format!("{mappings} user mappings"));
        curve.point(mappings);
        drop(ground.session(Contender::Ours, 2)?);
        ground.fleet.session()?.batch_execute(&add(there, mappings))?;
        there = mappings;
        ground.fleet.coordinator.kill9()?;
        ground.fleet.coordinator.start()?;
        let start = Instant::now();
        let resolver = ground.idle_resolver()?;
        curve.note(SWEPT, &[milliseconds(start.elapsed())]);
        note_transactions(&ground, effort, &mut curve)?;
        for (figure, contender) in
            [(FIRST, Contender::Ours), (STOCK_FIRST, Contender::StockParallel)]
        {
            note_time(effort, &mut curve, figure, || ground.first_transaction(contender, 2))?;
        }
        let mut session = ground.fleet.session()?;
        let statistics = "SELECT * FROM pg_stat_fdw_xacts";
        note_query(effort, &mut curve, STATISTICS, &mut session, statistics)?;
        curve.note(MEMORY, &[memory::of_process(resolver)?]);
    }
    Ok(vec![curve])
}

/// Adds mappings of new roles, and puts them on the list of participants.
fn add(from: usize, to: usize) -> String {
    format!(
        "DO $$ BEGIN
             FOR i IN {from} + 1 .. {to} LOOP
                 EXECUTE format('CREATE ROLE u%s', i);
                 EXECUTE format('CREATE USER MAPPING FOR u%s SERVER x1
                     OPTIONS (user ''postgres'', password_required ''false'')', i);
             END LOOP;
         END $$;
         INSERT INTO fdw_xacts.participant
         SELECT 100 + {from} + row_number() OVER (), p.serverid, r.oid, p.system_identifier, p.database, p.address
         FROM pg_roles r, fdw_xacts.participant p, pg_foreign_server s
         WHERE r.rolname ~ '^u[0-9]+$' AND substr(r.rolname, 2)::int > {from}
         AND s.oid = p.serverid AND s.srvname = 'x1' AND p.id < 100"
    )
}
