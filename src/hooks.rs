//! What the extension does before PostgreSQL's own commands.
//!
//! * [`drops`]: refuses to drop what is still needed to settle transactions in doubt;
//! * [`databases`]: commands that need a database without its resolver;
//! * [`second_look`]: has the resolver look before something is refused.

mod databases;
pub mod drops;
mod second_look;
