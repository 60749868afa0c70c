//! Connections to participants. How a transaction ends is decided elsewhere.
//!
//! * [`options`], [`credentials`], [`app_name`]: what a connection is made with; [`basis`]: the
//!   catalog rows behind that;
//! * [`quoting`]: texts as parts of other texts;
//! * [`connect`]: making one without blocking; [`hosts`]: of several; [`pooler`]: whether its
//!   server process stays ours;
//! * [`connection`]: the pipelined session with its transaction; [`report`]: its errors;
//! * [`cache`]: the connections of this backend;
//! * [`client_library`]: whether libpq is one for this server;
//! * [`wait`]: waiting for sockets; [`round`]: for the answers of many connections; [`long_wait`]:
//!   for so long that it may be a deadlock.

pub mod app_name;
pub mod basis;
pub mod cache;
pub mod client_library;
pub mod connect;
pub mod connection;
pub mod credentials;
pub mod hosts;
pub mod long_wait;
pub mod options;
pub mod pooler;
pub mod quoting;
pub mod report;
pub mod round;
pub mod wait;

pub use connection::Connection;
