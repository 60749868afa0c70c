//! The foreign data wrapper: postgres_fdw's planning, our execution.
