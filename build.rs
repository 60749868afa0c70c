//! Which libpq the extension is linked with, and the configuration options `pre_pg17` and
//! `pre_pg18`.
//!
//! A process has room for one libpq. A server whose installation has its own, which its
//! postgres_fdw needs, has to find that one here too; PostgreSQL's own extensions are linked the
//! same way.

use std::path::Path;

use pgrx_pg_config::{PgConfig, Pgrx};

fn main() {
    // The package here has the features of 15 to 18, that in `pg19` has the one of 19.
    println!(
        "cargo:rustc-check-cfg=cfg(feature, values(\"pg15\", \"pg16\", \"pg17\", \"pg18\", \"pg19\"))"
    );
    for newer in [17, 18] {
        println!("cargo:rustc-check-cfg=cfg(pre_pg{newer})");
        if (15..newer).any(|major| has_feature(&format!("PG{major}"))) {
            println!("cargo:rustc-cfg=pre_pg{newer}");
        }
    }
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

/// The server that this build is for: the one that cargo-pgrx names, or the one configured for the
/// feature.
fn server() -> Option<PgConfig> {
    let label = (15..=19)
        .map(|major| format!("pg{major}"))
        .find(|label| has_feature(&label.to_uppercase()))?;
    Pgrx::from_config().ok()?.get(&label).ok()
}

fn has_feature(name: &str) -> bool {
    std::env::var_os(format!("CARGO_FEATURE_{name}")).is_some()
}

/// Whether the dynamic linker looks there anyway, as for libraries of the system's packages.
fn is_searched_anyway(directory: &Path) -> bool {
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let multiarch = format!("/usr/lib/{architecture}-linux-gnu");
    ["/usr/lib", "/usr/lib64", &multiarch]
        .into_iter()
        .any(|place| same(directory, Path::new(place)))
}

/// Whether both name one directory: /lib is often a link to /usr/lib.
fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
