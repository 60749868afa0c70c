//! What survives a crash: the extension's tables, read and written below SQL. The decision table is the truth; losing
//! everything else loses nothing.
//!
//! * [`table`]: reading and writing a table below SQL;
//! * [`trusted`]: which tables are the extension's;
//! * [`decisions`]: one row per distributed transaction;
//! * [`participant_list`]: every participant that ever prepared;
//! * [`forgotten`]: what an operator gave up;
//! * [`identity`]: what tells this database's transactions from those of another coordinator;
//! * [`labels`]: the outcome of labelled transactions, for clients that lost the answer to COMMIT.

pub mod decisions;
pub mod forgotten;
pub mod identity;
pub mod labels;
pub mod participant_list;
pub mod table;
pub mod trusted;
