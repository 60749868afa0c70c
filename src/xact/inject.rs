//! Faults inside ourselves, for tests: only in builds with the feature `inject`.
//!
//! `SET pg_fdw_xacts.inject = 'POINT/KIND'` makes that point fail whenever it is passed. The points
//! are those where nothing may raise: `commit` (after the decision), `one phase` (after COMMIT was
//! sent to a participant that does not prepare), `prepare` (after PREPARE TRANSACTION), `abort`,
//! and `settle` (after COMMIT PREPARED and ROLLBACK PREPARED by the application). Kinds: `panic`
//! (of Rust), `error` (an ERROR that PostgreSQL raises), `memory` (PostgreSQL cannot allocate).

/// A point that a test can make fail.
#[cfg(not(feature = "inject"))]
pub fn point(_name: &str) {}

#[cfg(feature = "inject")]
pub use enabled::{define, point};

#[cfg(feature = "inject")]
mod enabled {
    use std::ffi::CString;

    use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
    use pgrx::pg_sys;

    static INJECT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

    /// Defines the setting.
    pub fn define() {
        GucRegistry::define_string_guc(
            c"pg_fdw_xacts.inject",
            c"Makes a point of the protocol fail, for tests.",
            c"",
            &INJECT,
            GucContext::Suset,
            GucFlags::default(),
        );
    }

    /// Fails if the setting names this point.
    pub fn point(name: &str) {
        let Some(setting) = INJECT.get() else { return };
        let setting = setting.to_string_lossy();
        let Some((point, kind)) = setting.split_once('/') else { return };
        if point != name {
            return;
        }
        match kind {
            "panic" => panic!("injected panic in {name}"),
            // SAFETY: raises, without looking at a catalog; pgrx turns it into a panic that carries
            // the ERROR.
            "error" => unsafe {
                pg_sys::pg_strtoint32(c"injected".as_ptr());
            },
            // SAFETY: more than palloc allows: raises, as above.
            "memory" => unsafe {
                pg_sys::palloc(usize::MAX / 2);
            },
            other => panic!("unknown kind of fault: {other}"),
        }
    }
}
