//! Which suite has a test of a given name. The sources say it, so that nothing is built to find
//! out.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::suites::Suite;

/// Where the tests of each suite are. `cargo test` calls a test in `a/b.rs` of such a directory
/// `a::b::name`.
const SOURCES: [(Suite, &str); 10] = [
    (Suite::Unit, "xtask/src"),
    (Suite::Unit, "pg_test/src"),
    (Suite::Unit, "bench/src"),
    (Suite::Unit, "docs/dashboard/src"),
    (Suite::Unit, "docs/render/src"),
    (Suite::Unit, "model/tests/model"),
    (Suite::Unit, "fuzz/tests/corpora"),
    (Suite::Extension, "src"),
    (Suite::Inject, "pg_test/tests/inject"),
    (Suite::Scenarios, "pg_test/tests/scenarios"),
];

/// A test as `cargo test` knows it.
#[derive(Debug)]
pub struct Test {
    /// The suite that has it.
    pub suite: Suite,
    /// Its name, with the modules it is in.
    pub name: String,
    /// Its source.
    pub file: PathBuf,
}

impl Test {
    /// A `#[pg_test]`, which runs in a server. pgrx calls it `pg_` and the function's name.
    pub fn is_in_server(&self) -> bool {
        self.suite == Suite::Extension && self.name.contains("::pg_")
    }
}

/// All tests of the workspace at `root`.
pub fn all(root: &Path) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for (suite, directory) in SOURCES {
        let directory = root.join(directory);
        for file in sources(&directory)? {
            let module = module(file.strip_prefix(&directory)?);
            let text = std::fs::read_to_string(&file)?;
            for name in names(&module, &text) {
                tests.push(Test { suite, name, file: file.clone() });
            }
        }
    }
    Ok(tests)
}

/// The tests whose names contain `filter`, in the suites in `only` or in any.
pub fn matching(root: &Path, filter: &str, only: &[Suite]) -> Result<Vec<Test>> {
    let (found, elsewhere): (Vec<_>, Vec<_>) = all(root)?
        .into_iter()
        .filter(|test| test.name.contains(filter))
        .partition(|test| only.is_empty() || only.contains(&test.suite));
    if !found.is_empty() {
        return Ok(found);
    }
    match elsewhere.first() {
        Some(test) => bail!(
            "no test of the suites chosen has \"{filter}\" in its name; {} is in the suite `{}`",
            test.name,
            test.suite
        ),
        None => {
            bail!("no test has \"{filter}\" in its name; `cargo xtask test --list` shows all names")
        }
    }
}

/// The Rust files below a directory.
pub fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries = std::fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The modules that a file is, for example `["a", "b"]` for `a/b.rs`.
fn module(file: &Path) -> Vec<String> {
    let parts = file.with_extension("");
    let mut parts: Vec<String> =
        parts.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    // A program in src/bin is a crate of its own.
    if parts.first().is_some_and(|first| first == "bin") {
        parts.drain(..parts.len().min(2));
    }
    parts.pop_if(|last| ["main", "lib", "mod"].contains(&last.as_str()));
    parts
}

/// The tests in a file, which is formatted by rustfmt.
fn names(module: &[String], text: &str) -> Vec<String> {
    let mut names = Vec::new();
    // Inner modules that are open, each with the indentation that its brace closes at.
    let mut inner: Vec<(usize, &str)> = Vec::new();
    let mut attribute = None;
    let mut generated = false;
    for line in text.lines() {
        let code = line.trim_start();
        let indentation = line.len() - code.len();
        if inner.last().is_some_and(|(at, _)| code == "}" && indentation == *at) {
            inner.pop();
        }
        let mut add = |prefix: &str, name: &str| {
            let modules = module.iter().map(String::as_str).chain(inner.iter().map(|(_, m)| *m));
            let path: String = modules.map(|part| format!("{part}::")).collect();
            names.push(format!("{path}{prefix}{name}"));
        };
        if let Some(name) = code.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            inner.push((indentation, name));
        } else if code == "#[test]" || code.starts_with("#[tokio::test") {
            attribute = Some("");
        } else if code.starts_with("#[pg_test") {
            attribute = Some("pg_");
        } else if let Some(prefix) = attribute
            && let Some((_, rest)) = code.split_once("fn ")
        {
            attribute = None;
            match rest.strip_prefix('$') {
                // A macro that makes tests: each line `name: "…",` of its call is one.
                Some(_) => generated = true,
                None => add(prefix, rest.split(['(', '<']).next().unwrap_or_default()),
            }
        } else if generated
            && let Some((name, _)) = code.split_once(": \"")
            && is_identifier(name)
        {
            add("", name);
        }
    }
    names
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace")
    }

    /// What `cargo test -- --list` calls the tests of this program is what its sources say.
    #[test]
    fn tests_are_found_under_the_names_that_cargo_gives_them() {
        let program = std::env::current_exe().expect("a test has a program");
        let output = Command::new(program).arg("--list").output().expect("it can be run");
        let listed = String::from_utf8(output.stdout).expect("names are UTF-8");
        let mut listed: Vec<&str> =
            listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        let tests = all(root()).expect("the sources can be read");
        let mut found: Vec<&str> = tests
            .iter()
            .filter(|test| test.file.starts_with(root().join("xtask")))
            .map(|test| &*test.name)
            .collect();
        listed.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, listed);
    }

    /// rustc says nothing of a file that it was not told of, and its tests never run.
    #[test]
    fn every_file_with_sources_has_a_mod_line() {
        for (_, directory) in SOURCES {
            for file in sources(&root().join(directory)).expect("the sources can be read") {
                let folder = file.parent().expect("a file is in a folder");
                let name = file.file_stem().expect("a file has a name").to_string_lossy();
                if ["main", "lib", "mod"].contains(&&*name) || folder.ends_with("bin") {
                    continue;
                }
                let line = format!("mod {name};");
                let above = ["main.rs", "lib.rs", "mod.rs"].map(|file| folder.join(file));
                let mut above = above.into_iter().chain([folder.with_extension("rs")]);
                let told = above.any(|file| {
                    std::fs::read_to_string(file).is_ok_and(|text| text.contains(&line))
                });
                assert!(told, "`{line}` is missing in the module above {}", file.display());
            }
        }
    }

    #[test]
    fn every_suite_has_tests_in_its_sources() {
        for suite in [Suite::Unit, Suite::Extension, Suite::Inject, Suite::Scenarios] {
            let tests = all(root()).expect("the sources can be read");
            assert!(tests.iter().any(|test| test.suite == suite), "{suite}");
        }
    }

    #[test]
    fn a_name_has_the_modules_of_its_file_and_those_inside() {
        let text = "#[test]\nfn outer() {\n}\n\nmod tests {\n    mod deep {\n        #[test]\n        \
                    #[ignore]\n        fn inner() {\n        }\n    }\n    #[pg_test]\n    fn \
                    served() {\n    }\n}\n";
        let module = module(Path::new("a/b.rs"));
        let expected = ["a::b::outer", "a::b::tests::deep::inner", "a::b::tests::pg_served"];
        assert_eq!(names(&module, text), expected);
        assert_eq!(super::module(Path::new("a/mod.rs")), ["a"]);
        assert_eq!(super::module(Path::new("main.rs")), [""; 0]);
        assert_eq!(super::module(Path::new("bin/torture/draw.rs")), ["draw"]);
    }

    #[test]
    fn tests_that_a_macro_makes_are_found() {
        let text = "macro_rules! pages {\n    () => {\n            #[test]\n            fn $test() \
                    {}\n    };\n}\npages! {\n    start_runs: \"start.md\",\n}\n";
        assert_eq!(names(&[], text), ["start_runs"]);
    }
}
