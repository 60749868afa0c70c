//! A process has room for one libpq: where the server's installation has its own, which its postgres_fdw
//! needs, ours is that one too. PostgreSQL's own extensions are linked the same way.

fn main() {
    println!("cargo:rerun-if-env-changed=PG_FDW_XACTS_LIBPQ_DIR");
    if let Some(directory) = std::env::var_os("PG_FDW_XACTS_LIBPQ_DIR") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", directory.display());
    }
}
