//! Connections to participants: options, connecting, waiting, the pipelined session, its errors and the
//! cache of them. Nothing here knows how a transaction ends.

pub mod app_name;
pub mod basis;
pub mod cache;
pub mod connect;
pub mod connection;
pub mod credentials;
pub mod options;
pub mod pooler;
pub mod report;
pub mod round;
pub mod wait;

pub use connection::Connection;
