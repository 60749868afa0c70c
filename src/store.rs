//! What survives a crash: the extension's tables, read and written below SQL. Which transactions
//! are committed follows from the decision table alone.
//!
//! * [`table`]: a table, below SQL;
//! * [`trusted`]: which tables are the extension's;
//! * [`decisions`]: one row per distributed transaction;
//! * [`participant_list`]: every participant that ever prepared;
//! * [`forgotten`]: what an operator has given up;
//! * [`identity`]: what tells this database's transactions from those of another coordinator;
//! * [`labels`]: labelled transactions, for clients that lost the answer to COMMIT.

pub mod decisions;
pub mod forgotten;
pub mod identity;
pub mod labels;
pub mod participant_list;
pub mod table;
pub mod trusted;
