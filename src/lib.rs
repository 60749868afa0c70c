//! pg_fdw_xacts: atomic commit across PostgreSQL servers, as an ordinary extension.

#![deny(unsafe_op_in_unsafe_fn)]

pgrx::pg_module_magic!(name, version);

mod api;
mod exec;
mod fdw;
mod guc;
mod hooks;
mod libpq;
mod pg;
mod protocol;
mod remote;
mod resolver;
mod shared;
mod store;
#[cfg(any(test, feature = "pg_test"))]
mod tests;
mod xact;

pgrx::extension_sql_file!("../sql/pg_fdw_xacts.sql", bootstrap);
pgrx::extension_sql_file!("../sql/sharding.sql", name = "sharding");
pgrx::extension_sql_file!("../sql/views.sql", finalize);

/// Called once, when the library is loaded.
#[allow(non_snake_case)]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn _PG_init() {
    pg::error::boundary(|| {
        if pg::preload::note() {
            remote::client_library::require()?;
            #[cfg(feature = "inject")]
            xact::inject::define();
            guc::define();
            pg::shmem_hooks::install(shared::shmem::request, shared::shmem::start_up);
            xact::callbacks::install();
            fdw::estimates::watch_handlers();
            fdw::install();
            xact::on_long_wait(fdw::estimates::on_long_wait);
            remote::long_wait::install(xact::LONG_WAITS);
            // pg_upgrade has read the next transaction id before it starts the old server, and
            // drops databases of the new one: no process writes, and no command is refused.
            if !pg::globals::is_in_pg_upgrade() {
                hooks::install();
                resolver::launcher::register();
            }
        }
        Ok(())
    });
}

/// What `cargo pgrx test` starts its server with.
#[cfg(test)]
pub mod pg_test {
    /// Called once before the first test.
    pub fn setup(_options: Vec<&str>) {}

    /// Lines of `postgresql.conf`.
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'pg_fdw_xacts'", "max_prepared_transactions = 20"]
    }
}
