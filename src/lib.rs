//! pg_fdw_xacts: atomic commit across PostgreSQL servers, as an ordinary extension.

#![deny(unsafe_op_in_unsafe_fn)]

use pg::error::{Error, Result, SqlState};

pgrx::pg_module_magic!(name, version);

mod api;
mod fdw;
mod guc;
mod libpq;
mod log;
mod pg;
mod protocol;
mod remote;
mod resolver;
#[cfg(any(test, feature = "pg_test"))]
mod tests;
mod xact;

pgrx::extension_sql_file!("../sql/pg_fdw_xacts.sql", bootstrap);
pgrx::extension_sql_file!("../sql/views.sql", finalize);

/// Refuses to work where the library is not in `shared_preload_libraries`.
pub(crate) fn require_preload() -> Result<()> {
    if PRELOADED.load(std::sync::atomic::Ordering::Relaxed) {
        return Ok(());
    }
    Err(Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "pg_fdw_xacts must be loaded via shared_preload_libraries",
    )
    .hint(
        "Add pg_fdw_xacts to shared_preload_libraries in postgresql.conf and restart the server.",
    ))
}

static PRELOADED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Called once, when the library is loaded.
#[allow(non_snake_case)]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn _PG_init() {
    pg::error::boundary(|| {
        // SAFETY: a plain global of the server's start.
        let preloading = unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress };
        if preloading {
            PRELOADED.store(true, std::sync::atomic::Ordering::Relaxed);
            #[cfg(feature = "inject")]
            xact::inject::define();
            guc::define();
            pg::shmem_hooks::install(log::shmem::request, log::shmem::start_up);
            xact::callbacks::install();
            xact::utility::install(api::guard::before_utility);
            api::guard::install();
            fdw::planning::install();
            xact::on_long_wait(fdw::planning::on_long_wait);
            resolver::launcher::register();
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
