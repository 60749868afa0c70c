//! What the extension does before PostgreSQL's own commands, and after some.
//!
//! * [`utility`]: looks at a statement before it runs, and hands it to the module concerned;
//! * [`object_access`]: sees objects being dropped and altered;
//! * [`drops`]: refuses to drop what is still needed to settle transactions in doubt;
//! * [`alter`]: warns when a server moves or a wrapper changes its handler;
//! * [`databases`]: commands that need a database without its resolver;
//! * [`doubt`]: what may be in doubt, for all of these;
//! * [`second_look`]: has the resolver look before something is refused.

mod alter;
mod databases;
mod doubt;
mod drops;
mod object_access;
mod second_look;
mod utility;

/// Installs the hooks; called while the server loads the library.
pub fn install() {
    crate::xact::utility::install(utility::before);
    crate::xact::start::install();
    object_access::install();
    databases::install();
}
