//! `cargo xtask upstream`: runs postgres_fdw's own regression and isolation tests with our handler,
//! and shows how their output differs from what is expected.
//!
//! The tests come with PostgreSQL's source, which is fetched and never kept in the repository. They
//! run twice: unchanged, to show that the harness is right, and switched to this extension by the
//! one documented statement. The statements of the switch are added to the expected output too, so
//! that they do not count as differences.

mod differences;
pub mod source;
mod switch;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use pg_test::install::as_server_user;

use crate::setup::Setup;
use differences::Differences;
use source::Part;

/// Which handler the tests run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// postgres_fdw alone.
    Upstream,
    /// After the switch to this extension.
    Switched,
}

/// One of PostgreSQL's two test drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    /// SQL scripts, `sql/*.sql`.
    Regression,
    /// Specifications of interleaved sessions, `specs/*.spec`.
    Isolation,
}

/// How the result of one test differs from what is expected.
pub struct Comparison {
    /// The test.
    pub test: String,
    /// Whether it ran with this extension.
    pub switched: bool,
    /// The lines expected.
    pub lines: usize,
    /// How many of them differ.
    pub differing: usize,
    /// How many of those differ for each known reason.
    pub reasons: BTreeMap<&'static str, usize>,
}

impl Comparison {
    /// How many lines differ without a known reason.
    pub fn unexplained(&self) -> usize {
        self.differing - self.reasons.values().sum::<usize>()
    }
}

/// Runs the tests of the source tree `source`, or of Debian's source package of the server, and
/// prints the lines that differ. A number of unexplained lines other than 0 is an error.
pub fn run(setup: &Setup, source: Option<&Path>, if_available: bool) -> Result<()> {
    let fetched;
    let tree = match source {
        Some(tree) => tree,
        None => {
            let directory = setup.workspace.target.join("upstream-source");
            let major = setup.installation.major();
            match source::fetch(&directory, major, None, Part::PostgresFdw) {
                Err(error) if if_available => {
                    println!("postgres_fdw's own tests are not run: {error:#}");
                    return Ok(());
                }
                tree => fetched = tree?,
            }
            &fetched
        }
    };
    let unexplained: usize =
        compare(setup, tree, Expected::AsWritten)?.iter().map(Comparison::unexplained).sum();
    ensure!(unexplained == 0, "{unexplained} lines differ without a known reason");
    Ok(())
}

/// What a test's output is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// What comes with the tests.
    AsWritten,
    /// What it is without this extension, because the tests are those of another version.
    AsWithout,
}

/// Runs the tests of the source tree `source`, without and with this extension, and prints the
/// lines that differ.
pub fn compare(setup: &Setup, source: &Path, expected: Expected) -> Result<Vec<Comparison>> {
    let tests = source.join("contrib/postgres_fdw").canonicalize()?;
    let home = setup.server_files.join("upstream");
    recreate(&home)?;
    setup.install_extension(&[])?;
    let mut comparisons = Vec::new();
    for mode in [Mode::Upstream, Mode::Switched] {
        for (driver, names) in [
            (Driver::Regression, names(&tests, "sql", "sql")?),
            (Driver::Isolation, names(&tests, "specs", "spec")?),
        ] {
            let results = run_driver(setup, &home, &tests, mode, driver, &names)?;
            let expected = match (expected, mode) {
                (Expected::AsWritten, _) => tests.join("expected"),
                (Expected::AsWithout, Mode::Upstream) => continue,
                (Expected::AsWithout, Mode::Switched) => results_of(&home, Mode::Upstream, driver),
            };
            for name in &names {
                comparisons.push(report(&expected, &results, mode, name)?);
            }
        }
    }
    Ok(comparisons)
}

/// The names of the tests in `directory`, without their extension.
fn names(tests: &Path, directory: &str, extension: &str) -> Result<Vec<String>> {
    let path = tests.join(directory);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&path).with_context(|| path.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension)
            && let Some(stem) = path.file_stem()
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Lays out a test directory as the drivers expect it, runs `names` and returns where the results
/// are.
fn run_driver(
    setup: &Setup,
    home: &Path,
    tests: &Path,
    mode: Mode,
    driver: Driver,
    names: &[String],
) -> Result<PathBuf> {
    let results = results_of(home, mode, driver);
    let directory = results.parent().context("the driver's directory")?;
    std::fs::create_dir(directory)?;
    let (program, input, extension) = match driver {
        Driver::Regression => ("regress/pg_regress", "sql", "sql"),
        Driver::Isolation => ("isolation/pg_isolation_regress", "specs", "spec"),
    };
    for kind in [input, "expected"] {
        std::fs::create_dir(directory.join(kind))?;
    }
    for name in names {
        let file = format!("{input}/{name}.{extension}");
        let text = std::fs::read_to_string(tests.join(&file))?;
        let text = match (mode, driver) {
            (Mode::Upstream, _) => text,
            (Mode::Switched, Driver::Regression) => switch::script(&text),
            (Mode::Switched, Driver::Isolation) => switch::specification(&text)?,
        };
        std::fs::write(directory.join(file), text)?;
        // The driver needs an expected file; the comparison is made here.
        std::fs::write(directory.join(format!("expected/{name}.out")), "")?;
    }
    let settings = directory.join("settings");
    std::fs::write(&settings, switch::settings(mode == Mode::Switched))?;
    open_to_server(setup, directory)?;

    let pgxs = pgxs(setup)?;
    let mut command =
        as_server_user(setup.installation.user(), &pgxs.join("src/test").join(program));
    command.current_dir(directory).env_remove("RUST_BACKTRACE").env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let option = |name: &str, value: &Path| format!("--{name}={}", value.display());
    command.args([
        option("inputdir", directory),
        option("outputdir", directory),
        option("bindir", setup.installation.bindir()),
        option("temp-instance", &directory.join("instance")),
        option("temp-config", &settings),
        "--no-locale".into(),
        "--encoding=UTF8".into(),
        "--dbname=contrib_regression".into(),
    ]);
    if driver == Driver::Isolation {
        command.arg("--load-extension=postgres_fdw");
        if mode == Mode::Switched {
            command.arg("--load-extension=pg_fdw_xacts");
        }
    }
    println!("\n==== {driver:?} tests, {mode:?}: {}", names.join(", "));
    // The driver's own verdict is about empty files.
    command.args(names).status().with_context(|| format!("{command:?}"))?;
    Ok(results)
}

/// Where a driver leaves the output of its tests.
fn results_of(home: &Path, mode: Mode, driver: Driver) -> PathBuf {
    home.join(format!("{mode:?}-{driver:?}").to_lowercase()).join("results")
}

/// Compares a result with the expected output closest to it.
fn report(expected: &Path, results: &Path, mode: Mode, name: &str) -> Result<Comparison> {
    let result = results.join(format!("{name}.out"));
    let result = std::fs::read_to_string(&result).with_context(|| {
        format!("the driver made no {}; see its log beside it", result.display())
    })?;
    let mut best: Option<(usize, Differences)> = None;
    for variant in ["", "_1", "_2"] {
        let expected = expected.join(format!("{name}{variant}.out"));
        let Ok(expected) = std::fs::read_to_string(&expected) else { continue };
        let lines = expected.lines().count();
        let expected = if mode == Mode::Switched { switch::script(&expected) } else { expected };
        let found = Differences::between(&expected, &result);
        if best.as_ref().is_none_or(|(_, other)| found.count() < other.count()) {
            best = Some((lines, found));
        }
    }
    let Some((lines, found)) = best else { bail!("there is no expected output of {name}") };
    found.print();
    let switched = mode == Mode::Switched;
    let reasons = if switched { found.reasons() } else { BTreeMap::new() };
    let comparison =
        Comparison { test: name.to_owned(), switched, lines, differing: found.count(), reasons };
    println!(
        "{name}, {mode:?}: {} of {lines} lines differ, {} with a known reason",
        comparison.differing,
        comparison.differing - comparison.unexplained()
    );
    Ok(comparison)
}

/// Where the server's package keeps the test drivers.
fn pgxs(setup: &Setup) -> Result<PathBuf> {
    let output = Command::new(setup.installation.pg_config()).arg("--pgxs").output()?;
    let makefile = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    let directory = makefile.ancestors().nth(3).map(Path::to_owned);
    directory.with_context(|| format!("{} is not in a pgxs directory", makefile.display()))
}

fn recreate(directory: &Path) -> Result<()> {
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    Ok(std::fs::create_dir_all(directory)?)
}

/// Gives `directory` and its contents to the user that servers run as.
fn open_to_server(setup: &Setup, directory: &Path) -> Result<()> {
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
    if let Some(user) = setup.installation.user() {
        let owner = format!("{}:{}", user.uid, user.gid);
        let status = Command::new("chown").arg("-R").arg(owner).arg(directory).status()?;
        ensure!(status.success(), "chown -R {}: {status}", directory.display());
    }
    Ok(())
}
