//! `pg_fdw_xacts_restore_point()`: on which servers it makes points, when it refuses, and what it
//! says when points were made that must not be used.
