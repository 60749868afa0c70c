//! A process has room for one libpq: where the server's installation has its own, which its postgres_fdw
//! needs, ours is that one too. PostgreSQL's own extensions are linked the same way.

use std::path::Path;

use pgrx_pg_config::{PgConfig, Pgrx};

fn main() {
    // pgrx's own build script follows the same two.
    println!("cargo:rerun-if-env-changed=PGRX_PG_CONFIG_PATH");
    if let Ok(configuration) = Pgrx::config_toml() {
        println!("cargo:rerun-if-changed={}", configuration.display());
    }
    // Where no server is configured pgrx's build script says what to do.
    let Some(directory) = server().and_then(|server| server.lib_dir().ok()) else { return };
    if directory.join("libpq.so.5").exists() && !is_searched_anyway(&directory) {
        println!("cargo:rustc-link-search=native={}", directory.display());
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", directory.display());
    }
}

/// The server that this build is for: the one that cargo-pgrx names, or the one that is configured for the feature.
fn server() -> Option<PgConfig> {
    let label = (15..=18).map(|major| format!("pg{major}")).find(|label| {
        std::env::var_os(format!("CARGO_FEATURE_{}", label.to_uppercase())).is_some()
    })?;
    Pgrx::from_config().ok()?.get(&label).ok()
}

/// Whether the dynamic linker looks there by itself, as for the libraries of the system's packages.
fn is_searched_anyway(directory: &Path) -> bool {
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let multiarch = format!("/usr/lib/{architecture}-linux-gnu");
    ["/usr/lib", "/usr/lib64", &multiarch]
        .into_iter()
        .any(|place| same(directory, Path::new(place)))
}

/// Whether both are one directory: /lib is often a link to /usr/lib.
fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
