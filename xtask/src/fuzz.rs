//! `cargo xtask fuzz`: the targets of the crate `fuzz` under libFuzzer, and rounds with a hostile
//! shard.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pg_test::install::{DIRECTORY_VARIABLE, PG_CONFIG_VARIABLE, finish};

use crate::setup::Setup;
use crate::suites::{check, heading};
use crate::workspace::Workspace;

/// Has the compiler count which branches are taken and note what is compared, as libFuzzer wants
/// it. These options need no nightly toolchain.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cdebug-assertions=on -Coverflow-checks=on -Ccodegen-units=1";

/// No input is longer: what is worth keeping stays small.
const LONGEST: usize = 160;

/// Of a corpus so many characters are kept: inputs that reach all branches, and of the others the
/// shortest.
const KEPT: usize = 8000;

/// Runs one target, or all of them, each for so long or for so many inputs, and keeps what adds to
/// its corpus.
pub fn run(
    workspace: &Workspace,
    target: Option<&str>,
    seconds: u64,
    inputs: Option<u64>,
) -> Result<()> {
    let limit = |tenths: u64| match inputs {
        Some(inputs) => format!("-runs={}", (inputs * tenths).div_ceil(10)),
        None => format!("-max_total_time={}", (seconds * tenths).div_ceil(10)),
    };
    let corpora = Corpora(workspace.root.join("fuzz/corpora"));
    let all = corpora.targets()?;
    let chosen: Vec<&String> =
        all.iter().filter(|name| target.is_none_or(|target| target == *name)).collect();
    ensure!(!chosen.is_empty(), "the targets are {}, and shard", all.join(", "));
    let program = build(workspace)?;
    for name in chosen {
        heading(name);
        let directory = workspace.target.join("fuzz/corpora").join(name);
        corpora.unpack(name, &directory)?;
        // How close two values have come guides it better, and takes twice the time for each input.
        for (tenths, profile) in [(1, 1), (9, 0)] {
            let mut fuzzer = std::process::Command::new(&program);
            fuzzer
                .env("FUZZ_TARGET", name)
                .current_dir(&workspace.target)
                .arg(&directory)
                .args([limit(tenths), format!("-use_value_profile={profile}")])
                .arg(format!("-max_len={LONGEST}"))
                .args(["-print_final_stats=1", "-verbosity=1"])
                // Nobody else adds to the directory, which it would read each second.
                .arg("-reload=0")
                .arg(format!("-artifact_prefix=fuzz/{name}-"));
            check(&mut fuzzer)?;
        }
        // As few as reach every branch; and those that reach one more often than others do, too.
        let smaller = |extension, options: &[&str]| -> Result<PathBuf> {
            let small = directory.with_extension(extension);
            let _ = std::fs::remove_dir_all(&small);
            std::fs::create_dir_all(&small)?;
            let mut merge = std::process::Command::new(&program);
            merge.env("FUZZ_TARGET", name).current_dir(&workspace.target).args(options);
            check(merge.args([&small, &directory]))?;
            Ok(small)
        };
        let branches = smaller("branches", &["-set_cover_merge=1", "-use_counters=0"])?;
        corpora.pack(name, &branches, &smaller("small", &["-merge=1"])?)?;
    }
    Ok(())
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    heading("building with coverage");
    // Named, so that the flags are not for build scripts.
    let host = host()?;
    let directory = workspace.target.join("fuzz");
    let mut cargo = workspace.cargo();
    cargo
        .env("RUSTFLAGS", COVERAGE)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .args(["build", "--release", "-p", "fuzz", "--features", "libfuzzer", "--target", &host])
        .arg("--target-dir")
        .arg(&directory);
    check(&mut cargo)?;
    Ok(directory.join(host).join("release/fuzz"))
}

/// The name by which the compiler knows this machine.
fn host() -> Result<String> {
    let said = finish(std::process::Command::new("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say what its host is")?.to_owned())
}

/// A file for each target, in which each input is a line of hexadecimal digits.
struct Corpora(PathBuf);

impl Corpora {
    fn targets(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// One file for each input, as libFuzzer wants them.
    fn unpack(&self, name: &str, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to)?;
        for (number, line) in std::fs::read_to_string(self.0.join(name))?.lines().enumerate() {
            let bytes: Option<Vec<u8>> =
                (0..line.len()).step_by(2).map(|at| byte(line.get(at..at + 2)?)).collect();
            let bytes = bytes.with_context(|| format!("{name}: line {}", number + 1))?;
            std::fs::write(to.join(format!("kept-{number}")), bytes)?;
        }
        Ok(())
    }

    fn pack(&self, name: &str, all_of: &Path, some_of: &Path) -> Result<()> {
        let lines = packed(inputs(all_of)?, inputs(some_of)?);
        Ok(std::fs::write(self.0.join(name), lines.concat())?)
    }
}

/// The inputs in a directory, each as a line.
fn inputs(directory: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let bytes = std::fs::read(entry?.path())?;
        lines.push(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n");
    }
    Ok(lines)
}

/// All of some lines, and as many of others as there is room for; the shortest first.
fn packed(all_of: Vec<String>, some_of: Vec<String>) -> Vec<String> {
    let order = |line: &String| (line.len(), line.clone());
    let mut lines = all_of;
    let mut length: usize = lines.iter().map(String::len).sum();
    let mut others: Vec<String> =
        some_of.into_iter().filter(|line| !lines.contains(line)).collect();
    others.sort_by_key(order);
    lines.extend(others.into_iter().take_while(|line| {
        length += line.len();
        length <= KEPT
    }));
    lines.retain(|line| line.len() > 1);
    lines.sort_by_key(order);
    lines
}

fn byte(digits: &str) -> Option<u8> {
    u8::from_str_radix(digits, 16).ok()
}

/// Runs rounds with a hostile shard.
pub fn shard(setup: &Setup, seconds: u64, seed: u64, one: bool, lying: bool) -> Result<()> {
    heading("installing the extension");
    setup.install_extension(&[])?;
    heading("a hostile shard");
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .args(["run", "-p", "pg_test", "--bin", "hostile", "--"])
        .args([seconds.to_string(), seed.to_string()])
        .args(one.then_some("one"))
        .args(lying.then_some("lying"));
    check(&mut command)
}

#[cfg(test)]
mod tests {
    use super::{KEPT, packed};

    #[test]
    fn what_reaches_a_branch_is_kept_however_long_it_is() {
        let line = |digits: &str, times| digits.repeat(times) + "\n";
        let long = line("aa", KEPT / 4);
        let others = vec![line("bb", KEPT / 4), line("", 0), line("dd", 2), line("cc", 1)];
        let kept = packed(vec![long.clone()], [others, vec![long.clone()]].concat());
        assert_eq!(kept, [line("cc", 1), line("dd", 2), long]);
    }
}
