//! Real PostgreSQL clusters for testing `pg_fdw_xacts`: a coordinator and its shards, started,
//! killed and restarted as the test says, with a fault proxy between them.
//!
//! Nothing here is simulated. A [`Cluster`] is a server of its own with its own data directory;
//! killing it is SIGKILL; a [`Client`](postgres::Client) is the one an application would use.
//! Waiting is always for a condition with a deadline ([`wait_until`]), never for a length of time.
//!
//! | module | subject |
//! |---|---|
//! | [`install`] | one PostgreSQL installation, and running its programs as a user it accepts |
//! | [`cluster`] | one server: initdb, start, stop, kill, restart |
//! | [`client`] | another program that is a client of a server: psycopg, pgjdbc, frameworks |
//! | [`log`] | reading a server's log: which statements it was sent |
//! | [`fleet`] | a coordinator with shards behind foreign tables |
//! | [`in_doubt`] | a transaction that is decided and that one shard does not hear of |
//! | [`link`] | a network link with a given delay between client and server |
//! | [`network`] | hosts of their own, and cables between them that lose packets |
//! | [`oracle`] | what must hold after every scenario; expected errors |
//! | [`history`] | what transactions did and saw, and whether the promised isolation explains it |
//! | [`bank`] | concurrent transfers under random faults, and what must be true afterwards |
//! | [`wire`] | PostgreSQL's message framing and which answer belongs to which statement |
//! | [`ha`] | the bank on servers that Patroni has fail over |
//! | [`pooler`] | PgBouncer in front of a server |
//! | [`prometheus`] | Prometheus and postgres_exporter beside a coordinator |
//! | [`dashboard`] | the dashboard of `monitoring/` and what it asks |
//! | [`proxy`] | the fault proxy: cut, hold, refuse, at exactly one statement |
//! | [`hostile`] | a shard whose answers are spoiled, and rounds of transactions with it |
//! | [`valgrind`] | the coordinator under valgrind |

pub mod bank;
pub mod client;
pub mod cluster;
pub mod dashboard;
pub mod fleet;
pub mod ha;
pub mod history;
pub mod hostile;
pub mod in_doubt;
pub mod install;
pub mod link;
pub mod log;
pub mod network;
pub mod oracle;
mod place;
pub mod pooler;
mod port;
mod process;
pub mod prometheus;
pub mod proxy;
pub mod valgrind;
mod wait;
pub mod wire;

pub use cluster::{Cluster, StopMode};
pub use fleet::{Fleet, FleetOptions};
pub use install::Installation;
pub use process::Frozen;
pub use proxy::{Fault, Point, Proxy};
pub use wait::{DEADLINE, lengthened_by_load, wait_until};
