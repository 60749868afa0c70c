//! What the tests that failed have said, for the end of a run: of a long log, often nothing else is
//! kept.

/// How many lines of each are shown.
const MOST_LINES: usize = 30;

/// Collects it from what `cargo test` prints.
#[derive(Debug, Default)]
pub(super) struct Failures {
    lines: Vec<String>,
    /// How many more lines of the test whose words are being read are kept.
    room: usize,
}

impl Failures {
    /// The next line of the output.
    pub(super) fn read(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.room = MOST_LINES;
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.room = 0;
        }
        if self.room > 0 && says_something(line) {
            self.lines.push(line.to_owned());
            self.room -= 1;
        }
    }

    /// What is kept of it.
    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }
}

/// Whether a line is more than a frame of a backtrace outside of the project. Of its own frames the
/// places are enough.
fn says_something(line: &str) -> bool {
    let line = line.trim_start();
    if let Some(place) = line.strip_prefix("at ") {
        return place.contains(".rs:") && !place.contains("/rustc/") && !place.contains("/.cargo/");
    }
    let is_frame = line.split_once(": ").is_some_and(|(number, _)| {
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    });
    !line.is_empty() && !is_frame
}

#[cfg(test)]
mod tests {
    use super::Failures;

    #[test]
    fn words_and_the_projects_own_places_are_kept() {
        let mut failures = Failures::default();
        let output = "test a::b ... FAILED\n\
            failures:\n\n\
            ---- a::b stdout ----\n\
            Error: db error\n\n\
            Stack backtrace:\n   \
               0: <core::result::Result<T,F> as Try>::from_residual\n             \
                         at /rustc/59/library/core/src/result.rs:2189:27\n   \
               1: a::b\n             \
                         at ./tests/a.rs:264:9\n  \
              26: clone3\n             \
                         at ./misc/clone3.S:81:0\n\n\n\
            failures:\n    a::b\n\n\
            test result: FAILED. 0 passed; 1 failed\n\
            the next program";
        output.lines().for_each(|line| failures.read(line));
        let kept = ["---- a::b stdout ----", "Error: db error", "Stack backtrace:"];
        assert_eq!(failures.lines()[..3], kept);
        assert_eq!(failures.lines()[3].trim(), "at ./tests/a.rs:264:9");
        assert_eq!(failures.lines().len(), 4);
    }

    #[test]
    fn a_test_that_says_much_does_not_hide_the_others() {
        let mut failures = Failures::default();
        for name in ["a", "b"] {
            failures.read(&format!("---- {name} stdout ----"));
            (0..1000).for_each(|_| failures.read("much"));
        }
        assert_eq!(failures.lines().len(), 2 * super::MOST_LINES);
    }
}
