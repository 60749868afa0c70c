//! What a READ COMMITTED transaction sees and changes on its servers, where `remote_isolation` is
//! `match`.

mod consistent;
mod consistent_writers;
mod cursors;
mod played;
mod settings;
mod shapes;
