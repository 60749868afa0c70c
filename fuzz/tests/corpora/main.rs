//! What a fuzzer has found worth keeping, once more. `fuzz/corpora` has a file for each target, in
//! which each input is a line of hexadecimal digits.

#![allow(missing_docs, reason = "a test's name is its documentation")]

use std::path::Path;

use fuzz::targets::ALL;

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(target);
    let text = std::fs::read_to_string(path).expect("each target has a corpus");
    let byte = |pair: &[u8]| {
        let digits = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(digits, 16).expect("hexadecimal digits")
    };
    text.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

#[test]
fn what_was_found_before_still_holds() {
    for (name, target) in ALL {
        let inputs = inputs(name);
        assert!(!inputs.is_empty(), "the corpus of {name} is empty");
        for input in inputs {
            target(&input);
        }
    }
}

/// Each input cut off anywhere, and with any bit turned: what is next to it. Under Miri only a few.
#[test]
fn and_so_does_what_is_next_to_it() {
    let most = if cfg!(miri) { 3 } else { usize::MAX };
    for (name, target) in ALL {
        for input in inputs(name).iter().take(most) {
            for at in (0..input.len()).take(most) {
                target(&input[..at]);
                for bit in 0..8 {
                    let mut turned = input.clone();
                    turned[at] ^= 1 << bit;
                    target(&turned);
                }
            }
        }
    }
}
