//! `cargo xtask fuzz`: one target under libFuzzer, whose arguments follow. The environment names it,
//! because libFuzzer has the command line.

#![allow(missing_docs, reason = "a program: its documentation is that of cargo xtask fuzz")]
#![no_main]

use std::sync::LazyLock;

use fuzz::targets::{Target, named};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    named(&name).unwrap_or_else(|| panic!("no target is called {name:?}"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
