//! Targets for a fuzzer: each takes any bytes, gives them to a part of the extension that needs no
//! server, and compares what comes out with what can be known of it otherwise.
//!
//! As in the crate `model`, the modules are not copied but included.
//!
//! * [`targets`]: the targets by name;
//! * [`data`]: numbers, texts and choices out of bytes.

pub mod data;
pub mod targets;

// The modules of the extension call each other by `crate::`.
#[path = "../../src"]
#[allow(missing_docs, dead_code, reason = "a room of the extension documents what it wants to")]
mod source {
    pub mod protocol;

    pub mod exec {
        pub mod lexer;
        pub mod rules;
        pub mod unparsed;
    }
    pub mod fdw {
        pub mod plan {
            pub mod decode;
        }
    }
    pub mod remote {
        pub mod quoting;
    }
}
pub use source::{exec, fdw, protocol, remote};
