//! Shows what the benchmark is doing.

use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Prints `text` with the seconds since the first call.
pub fn say(text: &str) {
    let start = START.get_or_init(Instant::now);
    println!("[{:>4} s] {text}", start.elapsed().as_secs());
}
